//! The error of reading a projection.

use event_store::{Position, StoreError};
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
    /// The projection did not reach the wanted position in time, but only this one.
    #[error("the projection has reached position {0}, and not the wanted one")]
    Behind(Position),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
