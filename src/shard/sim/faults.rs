//! What goes wrong, how often, and why it can.
//!
//! | fault | the real thing |
//! |---|---|
//! | an event comes late | its task is polled behind others, its socket or ring is read after others |
//! | an event is lost | it lay in a socket, a ring or the store's queue when its daemon died |
//! | an event comes twice | two stops; memory that runs out is told of by the counter, by a look at adoption and by the usage; a stop and a timer |
//! | the daemon dies | `kill -9`, a bug, an upgrade: between any two events and any two effects |
//! | a spawner dies | killed because it is stuck, with recipes unread, or in the middle of one |
//! | a keeper dies | the host ran out of memory |
//! | a keeper is not taken over | it is silent, or descriptors are missing |
//! | the host loses power | every process and every cgroup is gone, what the store has committed is not |
//! | the store is full | the disk is, and every change of a group fails together |
//! | the store is slow | the disk is |
//! | an answer is lost | the client's connection breaks; one with a key submits again |
//! | a client goes away in its upload | its connection breaks |

use super::{
    agenda::{MS, Step, US},
    dice::Dice,
    world::World,
};

/// Nothing goes wrong after that; virtual nanoseconds.
pub(super) const FAULTS_END: u64 = 4_000 * MS;

/// A bug that is put into the model to see whether it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planted {
    Nothing,
    /// The store answers before it commits.
    LostAcknowledgement,
    /// init runs its command once more with every go.
    DoubleGo,
    /// Keepers forget a job when it has ended, not when the store has that.
    EarlyRelease,
}

/// How rough one run is.
#[derive(Debug)]
pub(super) struct Weather {
    /// How often the daemon dies, in a thousand events and effects.
    crash_per_mille: u64,
    /// How many times it may.
    crashes_left: u32,
    /// Bounds of the time that a commit takes.
    pub(super) commit: (u64, u64),
    /// The longest that anything is late; most things are in time.
    lateness: u64,
}

impl Weather {
    pub(super) fn new(dice: &mut Dice) -> Self {
        let crash_per_mille = [0, 3, 8, 25][dice.place(4)];
        let slow = [MS, 5 * MS, 200 * MS][dice.place(3)];
        Self {
            crash_per_mille,
            crashes_left: u32::try_from(dice.between(1, 5)).expect("at most 5"),
            commit: (20 * US, slow),
            lateness: [MS, 20 * MS, 300 * MS][dice.place(3)],
        }
    }
}

impl World {
    /// Whether things may go wrong now.
    pub(super) const fn is_rough(&self) -> bool {
        self.agenda.now() < FAULTS_END
    }

    /// A delay between two bounds, and now and then a much longer one.
    pub(super) fn delay(&mut self, low: u64, high: u64) -> u64 {
        let late = self.is_rough() && self.dice.per_mille(30);
        let high = if late {
            high + self.weather.lateness
        } else {
            high
        };
        self.dice.between(low, high)
    }

    /// Whether the daemon dies at this very point.
    pub(super) fn is_struck(&mut self) -> bool {
        let weather = &mut self.weather;
        if self.agenda.now() >= FAULTS_END
            || weather.crashes_left == 0
            || !self.dice.per_mille(weather.crash_per_mille)
        {
            return false;
        }
        weather.crashes_left -= 1;
        true
    }

    /// Puts the faults that come from outside on the agenda.
    pub(super) fn brew(&mut self) {
        let at = |dice: &mut Dice| dice.between(0, FAULTS_END);
        if self.dice.per_mille(400) {
            for _ in 0..self.dice.between(1, 3) {
                let from = at(&mut self.dice);
                let lasts = self.dice.between(MS, 1_500 * MS);
                self.agenda.after(from, Step::StoreFull(true));
                let until = (from + lasts).min(FAULTS_END);
                self.agenda.after(until, Step::StoreFull(false));
            }
        }
        let few = |dice: &mut Dice, per_mille| {
            if dice.per_mille(per_mille) {
                dice.between(1, 4)
            } else {
                0
            }
        };
        for _ in 0..few(&mut self.dice, 400) {
            let step = at(&mut self.dice);
            self.agenda.after(step, Step::SpawnerFault);
        }
        for _ in 0..few(&mut self.dice, 300) {
            let step = at(&mut self.dice);
            self.agenda.after(step, Step::KeeperFault);
        }
        for _ in 0..few(&mut self.dice, 300) {
            let step = at(&mut self.dice);
            self.agenda.after(step, Step::Crash);
        }
        if self.dice.per_mille(100) {
            let step = at(&mut self.dice);
            self.agenda.after(step, Step::PowerFault);
        }
        // Not before a daemon is up; what is asked of none goes to nobody.
        if self.dice.per_mille(150) {
            let step = at(&mut self.dice);
            self.agenda.after(step, Step::HandOver);
        }
        if self.dice.per_mille(100) {
            let step = at(&mut self.dice);
            self.agenda.after(step, Step::Drain);
        }
        if self.dice.per_mille(100) {
            let step = at(&mut self.dice);
            self.agenda.after(step, Step::Down);
        }
    }
}
