//! Reading states from the log, stage by stage.

use crate::{
    decide::{
        fold::fold,
        stages::{AnyPart, Stages, States},
        state_cache::StateCache,
    },
    error::StoreError,
    event::{LogEvent, domain_ids, ids_of},
    position::Position,
    query::{query_item::QueryItem, state_query::QueryError},
    read::{reader::Reader, statement::Lookup},
};

/// Folds states up to the head, from the cached states on. Returns also the position up to which they are complete.
///
/// As exact as a read from the log's start: a cached state is complete up to its position, and one statement reads what came after it.
pub(crate) async fn read<E: LogEvent, S: States<E>>(
    reader: &Reader,
    states: S,
    cache: &StateCache,
) -> Result<(S::View, Position), StoreError> {
    match read_from_cached(reader, states.clone(), cache).await {
        // The cached states are another log's.
        Err(StoreError::Reset(_)) => read_from_cached(reader, states, &StateCache::disabled()).await,
        outcome => outcome,
    }
}

async fn read_from_cached<E: LogEvent, S: States<E>>(
    reader: &Reader,
    states: S,
    cache: &StateCache,
) -> Result<(S::View, Position), StoreError> {
    let epoch = reader.head_watcher().epoch();
    let mut stages = states.start(cache).map_err(schema)?;
    while stages.open_next(cache).map_err(schema)? {}
    let at = catch_up(reader, &mut stages, cache, epoch, None).await?;
    keep(&mut stages, cache, epoch);
    let view = stages.view().ok_or_else(stage_not_open)?;
    Ok((view, at))
}

/// Folds states up to a position. Returns also the position up to which they are complete.
pub(crate) async fn read_up_to<E: LogEvent, S: States<E>>(
    reader: &Reader,
    states: S,
    end: Position,
) -> Result<(S::View, Position), StoreError> {
    // A cached state may be complete beyond the end.
    let no_cache = StateCache::disabled();
    let epoch = reader.head_watcher().epoch();
    let mut stages = states.start(&no_cache).map_err(schema)?;
    let at = catch_up(reader, &mut stages, &no_cache, epoch, Some(end)).await?;
    let view = stages.view().ok_or_else(stage_not_open)?;
    Ok((view, at))
}

/// Keeps the states in the cache, for the next decision or read.
pub(crate) fn keep<E, V>(stages: &mut impl Stages<E, V>, cache: &StateCache, epoch: u64) {
    for part in parts(stages) {
        part.keep(cache, epoch);
    }
}

pub(crate) fn parts<E, V>(stages: &mut impl Stages<E, V>) -> Vec<&mut dyn AnyPart<E>> {
    let mut parts = vec![];
    stages.parts(&mut parts);
    parts
}

/// Reads until every part is read, or comes from the cache. Returns the position up to which all parts were read in one snapshot; `None` if
/// a stage was opened whose parts come from the cache. The append's condition checks those.
pub(crate) async fn read_unknown<E: LogEvent, V, T: Stages<E, V>>(
    reader: &Reader,
    stages: &mut T,
    cache: &StateCache,
    epoch: u64,
) -> Result<Option<Position>, StoreError> {
    loop {
        let at = read_parts(reader, stages, epoch, None).await?;
        match open_stages(stages, cache)? {
            Opened::Nothing => return Ok(Some(at)),
            Opened::Cached => return Ok(None),
            Opened::Unknown => {}
        }
    }
}

/// The stages that were opened.
pub(crate) enum Opened {
    /// None: all were open.
    Nothing,
    /// Stages whose parts all come from the cache.
    Cached,
    /// Stages with parts that were never read.
    Unknown,
}

/// Opens the stages that the states so far name.
pub(crate) fn open_stages<E, V>(stages: &mut impl Stages<E, V>, cache: &StateCache) -> Result<Opened, StoreError> {
    if !stages.open_next(cache).map_err(schema)? {
        return Ok(Opened::Nothing);
    }
    while stages.open_next(cache).map_err(schema)? {}
    let is_known = parts(stages).iter().all(|part| part.position() > Position::START);
    Ok(if is_known { Opened::Cached } else { Opened::Unknown })
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
        let at = read_parts(reader, stages, epoch, end).await?;
        if !stages.open_next(cache).map_err(schema)? {
            return Ok(at);
        }
    }
}

/// Reads what each part of the open stages has not folded yet, all in one snapshot at the end.
async fn read_parts<E: LogEvent, V, T: Stages<E, V>>(
    reader: &Reader,
    stages: &mut T,
    epoch: u64,
    end: Option<Position>,
) -> Result<Position, StoreError> {
    loop {
        let mut parts = parts(stages);
        let lookup = |item: &QueryItem, after| {
            // The newest event may come after the end. So all events are read, and the last one before the end counts.
            Lookup { item: QueryItem { newest: item.newest && end.is_none(), ..item.clone() }, after }
        };
        let lookups = parts.iter().flat_map(|part| part.query().items.iter().map(|item| lookup(item, part.position()))).collect();
        let mut answer = reader.find(lookups).await?;
        if reader.head_watcher().epoch() != epoch && parts.iter().any(|part| part.position() > Position::START) {
            return Err(StoreError::Reset("it is another one than the one read before".to_owned()));
        }
        if let Some(end) = end {
            answer.end_at(end);
        }
        if fold(&mut parts, &answer)? {
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
