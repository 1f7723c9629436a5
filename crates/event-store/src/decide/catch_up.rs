//! Reading states from the log, stage by stage.

use crate::{
    decide::{
        fold::fold,
        stages::{Stages, States},
        state_cache::StateCache,
    },
    error::StoreError,
    event::{LogEvent, domain_ids, ids_of},
    position::Position,
    query::{query_item::QueryColumns, state_query::QueryError},
    read::reader::Reader,
};

/// Folds states up to a position, or up to the head. Returns also the position up to which they are complete.
pub(crate) async fn read_up_to<E: LogEvent, S: States<E>>(
    reader: &Reader,
    states: S,
    end: Option<Position>,
) -> Result<(S::View, Position), StoreError> {
    let no_cache = StateCache::disabled();
    let epoch = reader.head_watcher().epoch();
    let mut stages = states.start(&no_cache).map_err(schema)?;
    let at = catch_up(reader, &mut stages, &no_cache, epoch, end).await?;
    let view = stages.view().ok_or_else(stage_not_open)?;
    Ok((view, at))
}

/// Reads what each part has not folded yet. Then opens the next stage and reads its parts, until every part is complete.
///
/// Everything is read from the log of this epoch, and nothing after `end`.
pub(crate) async fn catch_up<E: LogEvent, V, T: Stages<E, V>>(
    reader: &Reader,
    stages: &mut T,
    cache: &StateCache,
    epoch: u64,
    end: Option<Position>,
) -> Result<Position, StoreError> {
    loop {
        let mut columns = QueryColumns::new(reader.ids());
        let mut parts = vec![];
        stages.parts(&mut parts);
        for part in &parts {
            for item in &part.query().items {
                columns.push(item, part.position().0);
            }
        }
        if end.is_some() {
            // The newest event may come after the end. So all events are read, and the last one before the end counts.
            columns.newest.fill(false);
        }
        let mut answer = reader.find(columns).await?;
        if reader.head_watcher().epoch() != epoch && parts.iter().any(|part| part.position() > Position::START) {
            return Err(StoreError::Reset("it is another one than the one read before".to_owned()));
        }
        if let Some(end) = end {
            answer.end_at(end);
        }
        let complete = fold(&mut parts, &answer)?;
        if complete && !stages.open_next(cache).map_err(schema)? {
            return Ok(Position(answer.head));
        }
    }
}

/// Folds states from a given history, by the same rules as from the log: for tests, and for tools that have a log's events elsewhere.
///
/// # Errors
/// If a state's query or an event's ids do not fit the schema.
pub fn fold_history<E: LogEvent, S: States<E>>(states: S, history: &[(Position, E)]) -> Result<S::View, StoreError> {
    let order = domain_ids::<E>();
    let head = history.iter().map(|(position, _)| *position).max().unwrap_or_default();
    let no_cache = StateCache::disabled();
    let mut stages = states.start(&no_cache).map_err(schema)?;
    loop {
        let mut parts = vec![];
        stages.parts(&mut parts);
        for part in parts {
            let mut matching = vec![];
            for (position, event) in history {
                if part.query().matches(event.name(), &ids_of(event, &order)?) {
                    matching.push((*position, event.clone()));
                }
            }
            part.fold(matching, head);
        }
        if !stages.open_next(&no_cache).map_err(schema)? {
            return stages.view().ok_or_else(stage_not_open);
        }
    }
}

pub(crate) fn schema(error: QueryError) -> StoreError {
    StoreError::Schema(error.to_string())
}

pub(crate) fn stage_not_open() -> StoreError {
    StoreError::Schema("a stage was not opened".into())
}
