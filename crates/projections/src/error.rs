//! The error of reading a projection.

use event_store::StoreError;
use uuid::Uuid;

/// Why a projection was not read.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// The key is parked, because one of its events could not be applied.
    #[error("{key} is parked in {projection}, because one of its events could not be applied")]
    Parked {
        /// The projection.
        projection: String,
        /// The key.
        key: Uuid,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
