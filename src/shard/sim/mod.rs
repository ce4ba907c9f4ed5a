//! Shards on virtual time: many daemons, jobs and faults from one seed, held against what must always be true.
//!
//! ```text
//! dice ─► world ─► agenda: what happens next
//!           │        ├─ client      submits, uploads, stops, waits, loses its connection
//!           │        ├─ daemon      shards: the reactor itself, its effects performed by a model of the driver
//!           │        │   ├─ making, desk     tasks that take their time; crews
//!           │        │   └─ recovery         its death, and the next one's start
//!           │        ├─ crew        keepers and spawners, which outlive the daemon
//!           │        ├─ kernel      leaves and processes, which outlive everybody
//!           │        └─ store       what is committed, and what waits
//!           └─ ledger ─► invariants, after every step
//! ```
//! What is examined is the reactor and the rules of recovery; everything around them is a model of what the real
//! thing promises, with the faults that the real thing can have. It needs no clock, no thread and no right, and a
//! seed gives the same run wherever it is run. A new effect or event does not compile until the model knows it.

mod agenda;
mod client;
mod crew;
mod daemon;
mod desk;
mod dice;
mod faults;
mod invariants;
mod kernel;
mod ledger;
mod making;
mod recovery;
mod store;
mod tests;
mod trace;
mod world;
