//! What a shard knows of its front without naming it: how to ask it to close, and where its mail goes.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::Handle;
use crate::{
    job::ShardIndex,
    rt::{Event, Task},
};

type Inbox = Rc<dyn Fn(Box<dyn Any>)>;

/// The front of one shard.
#[derive(Default)]
pub(super) struct FrontDoor {
    task: RefCell<Option<Task<()>>>,
    is_closing: Cell<bool>,
    closing: Event,
    inbox: RefCell<Option<Inbox>>,
}

impl FrontDoor {
    pub(super) fn keep(&self, task: Task<()>) {
        self.task.replace(Some(task));
    }

    /// Asks the front to close and waits until it has.
    pub(super) async fn close(&self) {
        self.is_closing.set(true);
        self.closing.notify_all();
        let task = self.task.borrow_mut().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

impl Handle {
    /// Returns when the front is to close: every job has ended and everybody was told.
    pub async fn closing(&self) {
        let door = &self.shard().front;
        while !door.is_closing.get() {
            door.closing.listen().await;
        }
    }

    /// What to do with a message that another shard's front sends.
    pub fn on_message<T: Send + 'static>(&self, take: impl Fn(T) + 'static) {
        let take = move |message: Box<dyn Any>| match message.downcast::<T>() {
            Ok(message) => take(*message),
            Err(_) => tracing::error!("a front was sent a message of another type"),
        };
        self.shard().front.inbox.replace(Some(Rc::new(take)));
    }

    /// Gives a message to the front of another shard.
    pub fn send_message<T: Send + 'static>(&self, to: ShardIndex, message: T) {
        self.shard().post_or_run(to, move |there| {
            let inbox = there.front.inbox.borrow().clone();
            if let Some(inbox) = inbox {
                inbox(Box::new(message));
            }
        });
    }
}

impl std::fmt::Debug for FrontDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontDoor").field("is_closing", &self.is_closing).finish_non_exhaustive()
    }
}
