//! Stored offsets of translators.

use event_store::{Pool, SourcePartition, StoreError, connection::with_timeout};

/// Sets a stored offset. Returns the offset before; `None`, and nothing is set, if this consumer never read the partition.
///
/// A running translator notices within seconds and reads from here. It no longer compares the message before the offset: the operator
/// knows the topic that is there.
///
/// # Errors
/// As [`crate::builds`].
pub async fn seek(pool: &Pool, source: SourcePartition<'_>, to: i64) -> Result<Option<i64>, StoreError> {
    with_timeout(async {
        let mut transaction = pool.begin().await?;
        // A batch in flight compares and moves the offset under this lock. Without the lock, it would overwrite the new offset.
        sqlx::query!(r#"SELECT lock_log() AS "locked!: ()""#).fetch_one(&mut *transaction).await?;
        let before = sqlx::query_scalar!(
            "SELECT next_offset FROM source_offset WHERE consumer = $1 AND topic = $2 AND partition = $3 FOR UPDATE",
            source.consumer,
            source.topic,
            source.partition
        )
        .fetch_optional(&mut *transaction)
        .await?;
        sqlx::query!(
            "UPDATE source_offset SET next_offset = $4, last_message = NULL, updated_at = clock_timestamp()
             WHERE consumer = $1 AND topic = $2 AND partition = $3",
            source.consumer,
            source.topic,
            source.partition,
            to
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(before)
    })
    .await
}
