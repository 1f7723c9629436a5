//! The stages in which a decision reads its states.

use std::sync::Arc;

use crate::{
    decide::{
        state::State,
        state_cache::{Folded, StateCache},
    },
    event::LogEvent,
    position::Position,
    query::state_query::{Query, QueryError},
};

/// A state, and up to where it is complete. Its position never exceeds what it has folded.
#[doc(hidden)]
pub struct Part<S> {
    initial: S,
    state: S,
    query: Arc<Query>,
    position: Position,
}

/// A part of a decision's knowledge, whatever its state.
pub trait AnyPart<E>: Send {
    /// Which events it folds.
    #[doc(hidden)]
    fn query(&self) -> &Arc<Query>;
    /// Up to where it is complete.
    #[doc(hidden)]
    fn position(&self) -> Position;
    /// Takes matching events in, in order, and is complete up to a position from then on.
    #[doc(hidden)]
    fn fold(&mut self, events: Vec<(Position, E)>, complete_to: Position);
    /// Takes what is known by now, where that is more. Returns whether it was.
    #[doc(hidden)]
    fn refresh(&mut self, cache: &StateCache) -> bool;
    /// Keeps it for the next decision.
    #[doc(hidden)]
    fn keep(&self, cache: &StateCache, epoch: u64);
}

impl<S, E> AnyPart<E> for Part<S>
where
    S: State,
    S::Event: TryFrom<E>,
{
    fn query(&self) -> &Arc<Query> {
        &self.query
    }

    fn position(&self) -> Position {
        self.position
    }

    fn fold(&mut self, events: Vec<(Position, E)>, complete_to: Position) {
        for (position, event) in events {
            // Conversion fails only for a type outside the state's stream, which its query do not name.
            if position > self.position
                && let Ok(event) = event.try_into()
            {
                self.state.mutate(event, position);
            }
        }
        self.position = self.position.max(complete_to);
    }

    fn refresh(&mut self, cache: &StateCache) -> bool {
        let Some(Folded { state, position, .. }) = cache.newer(&self.initial, self.position) else { return false };
        (self.state, self.position) = (state, position);
        true
    }

    fn keep(&self, cache: &StateCache, epoch: u64) {
        cache.keep(&self.initial, &self.state, &self.query, self.position, epoch);
    }
}

/// The states of a decision: one, a tuple or a `Vec` of them, or [`Dependent`] of two.
pub trait States<E: LogEvent>: Clone + Send + Sync + 'static {
    /// What the decision sees: the states themselves; of [`Dependent`], both stages as a pair.
    type View: Clone + Send + Sync;
    /// The same, with what is known of each.
    #[doc(hidden)]
    type Stages: Stages<E, Self::View>;

    /// Starts with what is known.
    ///
    /// # Errors
    /// Where a state's query does not fit the log's schema.
    #[doc(hidden)]
    fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError>;
}

/// What is known of a decision's states, stage by stage.
#[doc(hidden)]
pub trait Stages<E, S>: Send {
    /// The parts of the stages opened so far, always in the same order.
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>);
    /// Opens the stage that what is known so far names. Returns whether one was opened that has parts.
    fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError>;
    /// The states as they stand. `None` where a stage is not open.
    fn view(&self) -> Option<S>;
}

impl<S, E> States<E> for S
where
    E: LogEvent,
    S: State,
    S::Event: TryFrom<E>,
{
    type View = S;
    type Stages = Part<S>;

    fn start(self, cache: &StateCache) -> Result<Part<S>, QueryError> {
        let Folded { state, query, position } = cache.look::<S, E>(&self)?;
        Ok(Part { initial: self, state, query, position })
    }
}

impl<S, E> Stages<E, S> for Part<S>
where
    S: State,
    S::Event: TryFrom<E>,
{
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
        parts.push(self);
    }
    fn open_next(&mut self, _: &StateCache) -> Result<bool, QueryError> {
        Ok(false)
    }
    fn view(&self) -> Option<S> {
        Some(self.state.clone())
    }
}

macro_rules! tuple {
    ($($name:ident $stages:ident $n:tt),*) => {
        impl<E: LogEvent, $($name: States<E>),*> States<E> for ($($name,)*) {
            type View = ($($name::View,)*);
            type Stages = ($($name::Stages,)*);
            fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError> {
                Ok(($(self.$n.start(cache)?,)*))
            }
        }

        impl<E, $($name,)* $($stages: Stages<E, $name>),*> Stages<E, ($($name,)*)> for ($($stages,)*) {
            fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
                $(self.$n.parts(parts);)*
            }
            fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError> {
                let mut opened = false;
                $(opened |= self.$n.open_next(cache)?;)*
                Ok(opened)
            }
            fn view(&self) -> Option<($($name,)*)> {
                Some(($(self.$n.view()?,)*))
            }
        }
    };
}
tuple!(A SA 0, B SB 1);
tuple!(A SA 0, B SB 1, C SC 2);
tuple!(A SA 0, B SB 1, C SC 2, D SD 3);

/// A decision without states: it is always taken.
impl<E: LogEvent> States<E> for () {
    type View = ();
    type Stages = ();
    fn start(self, _: &StateCache) -> Result<(), QueryError> {
        Ok(())
    }
}

impl<E> Stages<E, ()> for () {
    fn parts<'a>(&'a mut self, _: &mut Vec<&'a mut dyn AnyPart<E>>) {}
    fn open_next(&mut self, _: &StateCache) -> Result<bool, QueryError> {
        Ok(false)
    }
    fn view(&self) -> Option<()> {
        Some(())
    }
}

impl<E: LogEvent, S: States<E>> States<E> for Vec<S> {
    type View = Vec<S::View>;
    type Stages = Vec<S::Stages>;
    fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError> {
        self.into_iter().map(|states| states.start(cache)).collect()
    }
}

impl<E, S, T: Stages<E, S>> Stages<E, Vec<S>> for Vec<T> {
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
        self.iter_mut().for_each(|stages| stages.parts(parts));
    }
    fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError> {
        self.iter_mut().try_fold(false, |opened, stages| Ok(stages.open_next(cache)? | opened))
    }
    fn view(&self) -> Option<Vec<S>> {
        self.iter().map(Stages::view).collect()
    }
}

/// Two stages: the first is read, and names the second. Both are in the decision's condition, and the decision sees both as a pair.
///
/// Submit Cart reads its cart, and that names the products whose inventories it must read.
#[derive(Debug, Clone)]
pub struct Dependent<First, Second, View = First> {
    first: First,
    names: fn(&View) -> Second,
}

impl<First, Second, View> Dependent<First, Second, View> {
    /// The first stage, and how it names the second.
    pub fn new(first: First, names: fn(&View) -> Second) -> Self {
        Self { first, names }
    }
}

#[doc(hidden)]
pub struct DependentStages<E: LogEvent, A: States<E>, B: States<E>> {
    first: A::Stages,
    names: fn(&A::View) -> B,
    /// What was named, and what is known of it.
    second: Option<(B, B::Stages)>,
}

impl<E, A, B> States<E> for Dependent<A, B, A::View>
where
    E: LogEvent,
    A: States<E>,
    A::View: 'static,
    B: States<E> + PartialEq,
{
    type View = (A::View, B::View);
    type Stages = DependentStages<E, A, B>;

    fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError> {
        Ok(DependentStages { first: self.first.start(cache)?, names: self.names, second: None })
    }
}

impl<E, A, B> Stages<E, (A::View, B::View)> for DependentStages<E, A, B>
where
    E: LogEvent,
    A: States<E>,
    B: States<E> + PartialEq,
{
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
        self.first.parts(parts);
        if let Some((_, second)) = &mut self.second {
            second.parts(parts);
        }
    }

    fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError> {
        if self.first.open_next(cache)? {
            return Ok(true);
        }
        let Some(first) = self.first.view() else { return Ok(false) };
        let named = (self.names)(&first);
        match &mut self.second {
            // The first stage still names the same: what is known of it stays.
            Some((before, second)) if *before == named => second.open_next(cache),
            _ => {
                let mut second = named.clone().start(cache)?;
                let mut parts = vec![];
                second.parts(&mut parts);
                let opened = !parts.is_empty();
                self.second = Some((named, second));
                Ok(opened)
            }
        }
    }

    fn view(&self) -> Option<(A::View, B::View)> {
        let (_, second) = self.second.as_ref()?;
        Some((self.first.view()?, second.view()?))
    }
}
