//! What can go wrong with reading a projection.

use event_store::StoreError;
use uuid::Uuid;

/// Why a projection was not read.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// What is asked for depends on a key that is parked, since an event of it could not be applied.
    #[error("in {projection}, {key} is parked: an event of it could not be applied")]
    Parked {
        /// The projection.
        projection: String,
        /// The key.
        key: Uuid,
    },
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
