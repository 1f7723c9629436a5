//! Locks that let commands on one subject decide one after the other in this process.
//!
//! A command locks the first id of its condition: the first id of its decision's first state, such as the cart. The next command on that
//! cart then decides on what this one left in the state cache, instead of conflicting in the log. Ids that a decision only reads beside
//! it, such as a popular product's inventory, are not locked. The locks save conflicts; exactness is the log's check.

use lockable::{LockPool, Lockable};
use uuid::Uuid;

/// A domain id's number in the schema, and its value.
pub(crate) type LockedId = (usize, Uuid);
pub(crate) type CommandLock<'a> = <LockPool<LockedId> as Lockable<LockedId, ()>>::Guard<'a>;

/// The ids on which commands are about to append.
#[derive(Default)]
pub(crate) struct CommandLocks(LockPool<LockedId>);

impl CommandLocks {
    /// Locks an id. Returns also whether another command held it.
    pub(crate) async fn lock(&self, id: LockedId) -> (CommandLock<'_>, bool) {
        match self.0.try_lock(id) {
            Some(lock) => (lock, false),
            None => (self.0.async_lock(id).await, true),
        }
    }
}
