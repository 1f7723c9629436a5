//! Checks whether a log and the records of its commands are those of an exact store.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use super::{
    command::{Decides, Spec},
    domain::{CommandId, Folded, Happened, Key, Saw},
    record::{Outcome, Record},
};

/// A fault of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Positions are not 1, 2, 3, …
    Position {
        /// The next position in the log.
        found: i64,
        /// The expected position.
        expected: i64,
    },
    /// An append is missing, incomplete, torn apart, or there twice.
    Torn {
        /// The command.
        command: CommandId,
        /// The positions of its events.
        positions: Vec<i64>,
    },
    /// The events or the answer differ from what the command decides on what it saw.
    Decided {
        /// The command.
        command: CommandId,
    },
    /// An event that the append condition forbids lies between the condition's position and the append.
    Overtaken {
        /// The command.
        command: CommandId,
        /// The position of its first event.
        first: i64,
        /// The states that the decision saw.
        saw: Vec<Saw>,
        /// The states that the decision should have seen.
        held: Vec<Saw>,
    },
    /// An answer without events rests on states that were true at no position between the command's start and its answer. If the answer
    /// names a position, they were not true there.
    Unjustified {
        /// The answer.
        record: Record,
    },
    /// Acknowledged events are missing from the log, at another position, or outside the command's start and answer.
    Misplaced {
        /// The answer.
        record: Record,
        /// The position of its last event.
        last: Option<i64>,
    },
    /// The log contains events of a command whose answer says that nothing was written.
    Written {
        /// The answer.
        record: Record,
    },
    /// An error that must not occur in a history, or two answers to one command.
    Answer {
        /// The answer.
        record: Record,
    },
}

/// The counts of an exact history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events in the log.
    pub events: usize,
    /// Commands acknowledged with events.
    pub written: usize,
    /// Commands acknowledged without events.
    pub empty: usize,
    /// Commands refused.
    pub refused: usize,
    /// Commands that failed, with nothing written.
    pub undone: usize,
    /// Commands with an unknown outcome.
    pub unknown: usize,
    /// Appends in the log without a record, or with an unknown outcome.
    pub unacknowledged: usize,
    /// Conflicts: how often a command had to decide again.
    pub conflicts: usize,
    /// Calls whose connection was lost before the answer, so that their outcome was looked up. Killed processes are not counted.
    pub looked_up: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, written, empty, refused, undone, unknown, unacknowledged, conflicts, looked_up } = self;
        write!(
            f,
            "{events} events; {written} commands written after {conflicts} conflicts, {empty} empty, {refused} refused, {undone} not done, \
             {unknown} unknown; {unacknowledged} appends unacknowledged; {looked_up} calls looked up"
        )
    }
}

/// The events that each state has folded, over the whole log.
struct Timelines<'a> {
    log: &'a [(i64, Happened)],
    /// After each event that the state folds.
    known: HashMap<Key, Vec<Folded>>,
}

impl Timelines<'_> {
    fn of(&mut self, key: Key) -> &[Folded] {
        self.known.entry(key).or_insert_with(|| {
            let (mut all, mut folded) = (vec![], Folded::default());
            for (at, event) in self.log {
                let before = folded;
                key.fold(&mut folded, *at, event);
                if folded != before {
                    all.push(folded);
                }
            }
            all
        })
    }

    /// Returns what a state has folded up to a position.
    fn at(&mut self, key: Key, position: i64) -> Folded {
        let all = self.of(key);
        let count = all.partition_point(|folded| folded.last <= position);
        count.checked_sub(1).and_then(|n| all.get(n)).copied().unwrap_or_default()
    }

    /// Returns the range of positions at which a state is as it was seen.
    fn holds(&mut self, saw: &Saw) -> Option<(i64, i64)> {
        let all = self.of(saw.key);
        let next = all.partition_point(|folded| folded.last <= saw.folded.last);
        let until = all.get(next).map_or(i64::MAX, |folded| folded.last - 1);
        (self.at(saw.key, saw.folded.last) == saw.folded).then_some((saw.folded.last, until))
    }

    /// Returns whether a command sees this at one of the given positions.
    fn justify(&mut self, spec: &Spec, saw: &[Saw], mut from: i64, mut to: i64) -> bool {
        for saw in saw {
            let Some((since, until)) = self.holds(saw) else { return false };
            (from, to) = (from.max(since), to.min(until));
        }
        from <= to && spec.boundary(|key| self.at(key, from)) == saw
    }
}

/// Checks a history: the whole log against the records of its commands.
///
/// # Errors
/// The faults found.
pub fn check(seed: u64, log: &[(i64, Happened)], records: &[Record]) -> Result<Summary, Vec<Violation>> {
    let mut violations = vec![];
    let mut summary = Summary { events: log.len(), ..Summary::default() };
    for (expected, (found, _)) in (1..).zip(log) {
        if *found != expected {
            violations.push(Violation::Position { found: *found, expected });
        }
    }
    let mut appends: BTreeMap<CommandId, Vec<(i64, &Happened)>> = BTreeMap::new();
    for (at, event) in log {
        appends.entry(event.by().command).or_default().push((*at, event));
    }
    let mut timelines = Timelines { log, known: HashMap::new() };
    for (command, events) in &appends {
        violations.extend(wrong_append(&mut timelines, seed, *command, events));
    }
    let (mut answered, mut acknowledged) = (HashSet::new(), 0);
    for record in records {
        if !answered.insert(record.command) {
            violations.push(Violation::Answer { record: record.clone() });
        }
        summary.conflicts += record.happens.saturating_sub(1) as usize;
        match record.outcome {
            Outcome::Written { .. } => {
                summary.written += 1;
                acknowledged += 1;
            }
            Outcome::AlreadyDone { .. } | Outcome::Nothing { .. } => summary.empty += 1,
            Outcome::Refused { .. } => summary.refused += 1,
            Outcome::Undone { .. } => summary.undone += 1,
            Outcome::Unknown { .. } => summary.unknown += 1,
            Outcome::Fault { .. } => {}
        }
        let written = appends.get(&record.command).map(Vec::as_slice).unwrap_or_default();
        violations.extend(wrong_answer(&mut timelines, seed, record, written));
    }
    summary.unacknowledged = appends.len().saturating_sub(acknowledged);
    if violations.is_empty() { Ok(summary) } else { Err(violations) }
}

/// Returns the faults of an append in the log.
fn wrong_append(timelines: &mut Timelines<'_>, seed: u64, command: CommandId, events: &[(i64, &Happened)]) -> Option<Violation> {
    let (first, one) = events.first()?;
    let whole = events.len() == one.by().of
        && events.iter().zip(*first..).zip(0..).all(|(((at, event), expected), n)| *at == expected && event.by().n == n);
    if !whole {
        return Some(Violation::Torn { command, positions: events.iter().map(|(at, _)| *at).collect() });
    }
    let (spec, saw) = (Spec::of(seed, command), &one.by().saw);
    let held = spec.boundary(|key| timelines.at(key, first - 1));
    if held != *saw {
        return Some(Violation::Overtaken { command, first: *first, saw: saw.clone(), held });
    }
    let events: Vec<_> = events.iter().map(|(_, event)| (*event).clone()).collect();
    (spec.decide(saw) != Decides::Events(events)).then_some(Violation::Decided { command })
}

/// Returns the faults of an answer. `written` are the command's events in the log.
fn wrong_answer(timelines: &mut Timelines<'_>, seed: u64, record: &Record, written: &[(i64, &Happened)]) -> Option<Violation> {
    let Record { command, before, after, outcome, .. } = record;
    let spec = Spec::of(seed, *command);
    let unjustified = || Some(Violation::Unjustified { record: record.clone() });
    match outcome {
        Outcome::Written { at } => {
            let last = written.last().map(|(last, _)| *last);
            let began = written.first().is_some_and(|(first, _)| first > before);
            return (last != Some(*at) || !began || at > after).then(|| Violation::Misplaced { record: record.clone(), last });
        }
        Outcome::Unknown { .. } => return None,
        Outcome::Fault { .. } => return Some(Violation::Answer { record: record.clone() }),
        _ if !written.is_empty() => return Some(Violation::Written { record: record.clone() }),
        Outcome::Undone { .. } => return None,
        Outcome::AlreadyDone { saw, .. } | Outcome::Refused { saw } => {
            if !timelines.justify(&spec, saw, *before, *after) {
                return unjustified();
            }
        }
        Outcome::Nothing { at, saw } => {
            if !(before..=after).contains(&at) || !timelines.justify(&spec, saw, *at, *at) {
                return unjustified();
            }
        }
    }
    let decided = match outcome {
        Outcome::AlreadyDone { at, saw } => spec.decide(saw) == Decides::AlreadyDone(*at),
        Outcome::Nothing { saw, .. } => [Decides::Nothing, Decides::Events(vec![])].contains(&spec.decide(saw)),
        Outcome::Refused { saw } => spec.decide(saw) == Decides::Refused,
        _ => true,
    };
    (!decided).then_some(Violation::Decided { command: *command })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;

    /// A store in memory. It is exact unless a test breaks it.
    #[derive(Default)]
    struct Simulated {
        log: Vec<(i64, Happened)>,
        records: Vec<Record>,
    }

    /// How far each of a command's states is behind the log when it decides.
    type Lag = fn(usize) -> i64;

    impl Simulated {
        fn head(&self) -> i64 {
            self.log.len() as i64
        }

        /// Makes a history. The commands that `flawed` selects see states as old as `lag` says.
        fn run(flawed: impl Fn(&Decides) -> bool, lag: Lag) -> Self {
            let mut all = Self::default();
            for n in 0..900 {
                let command = CommandId { process: n % 3, task: 0, number: n / 3 };
                let spec = Spec::of(SEED, command);
                let see = |key: Key, behind: i64| {
                    let until = all.head() - behind;
                    let mut folded = Folded::default();
                    all.log.iter().filter(|(at, _)| *at <= until).for_each(|(at, event)| key.fold(&mut folded, *at, event));
                    folded
                };
                let mut parts = 0..;
                let mut saw = spec.boundary(|key| see(key, parts.next().map_or(0, lag)));
                let mut decided = spec.decide(&saw);
                if !flawed(&decided) {
                    saw = spec.boundary(|key| see(key, 0));
                    decided = spec.decide(&saw);
                }
                let before = all.head();
                let outcome = match decided {
                    Decides::Events(events) if !events.is_empty() => {
                        for event in events {
                            all.log.push((all.head() + 1, event));
                        }
                        Outcome::Written { at: all.head() }
                    }
                    Decides::Events(_) | Decides::Nothing => Outcome::Nothing { at: before, saw },
                    Decides::AlreadyDone(at) => Outcome::AlreadyDone { at, saw },
                    Decides::Refused => Outcome::Refused { saw },
                };
                all.records.push(Record { command, before, after: all.head(), outcome, happens: 0 });
            }
            all
        }

        fn exact() -> Self {
            Self::run(|_| false, |_| 0)
        }

        fn check(&self) -> Result<Summary, Vec<Violation>> {
            check(SEED, &self.log, &self.records)
        }

        /// Returns the first record that matches, to be changed.
        fn answer(&mut self, wanted: impl Fn(&Record) -> bool) -> &mut Record {
            self.records.iter_mut().skip(100).find(|record| wanted(record)).unwrap()
        }

        #[track_caller]
        fn fails(&self, with: impl Fn(&Violation) -> bool) {
            let violations = self.check().unwrap_err();
            assert!(violations.iter().all(with), "{violations:?}");
        }

        #[track_caller]
        fn fails_among_others(&self, with: impl Fn(&Violation) -> bool) {
            let violations = self.check().unwrap_err();
            assert!(violations.iter().any(with), "{violations:?}");
        }
    }

    fn written(record: &Record) -> bool {
        matches!(record.outcome, Outcome::Written { .. })
    }

    fn refused(record: &Record) -> bool {
        matches!(record.outcome, Outcome::Refused { .. })
    }

    fn nothing(record: &Record) -> bool {
        matches!(record.outcome, Outcome::Nothing { .. })
    }

    #[test]
    fn exact_history_passes_and_contains_every_kind() {
        let Summary { events, written, empty, refused, .. } = Simulated::exact().check().unwrap();
        assert!(events > written && written > 300 && empty > 50 && refused > 100, "{events} {written} {empty} {refused}");
    }

    #[test]
    fn answers_may_rest_on_any_moment_of_the_command() {
        let mut all = Simulated::exact();
        for record in &mut all.records {
            record.before = (record.before - 5).max(0);
            record.after += 5;
        }
        all.check().unwrap();
    }

    #[test]
    fn finds_an_append_on_stale_states() {
        let happens = |decided: &Decides| matches!(decided, Decides::Events(events) if !events.is_empty());
        Simulated::run(happens, |_| 3).fails(|violation| matches!(violation, Violation::Overtaken { .. }));
        // Only its second state.
        Simulated::run(happens, |part| i64::from(part == 1)).fails(|violation| matches!(violation, Violation::Overtaken { .. }));
    }

    #[test]
    fn finds_refusals_and_empty_successes_on_stale_states() {
        for flawed in [
            |decided: &Decides| *decided == Decides::Refused,
            |decided: &Decides| *decided == Decides::Nothing,
            |decided: &Decides| *decided == Decides::Events(vec![]),
            |decided: &Decides| matches!(decided, Decides::AlreadyDone(_)),
        ] {
            Simulated::run(flawed, |_| 3).fails(|violation| matches!(violation, Violation::Unjustified { .. }));
        }
    }

    #[test]
    fn finds_a_refusal_that_mixes_two_moments() {
        let mut all = Simulated::run(|decided| *decided == Decides::Refused, |part| if part == 0 { 6 } else { 0 });
        for record in &mut all.records {
            record.before = (record.before - 6).max(0);
        }
        all.fails(|violation| matches!(violation, Violation::Unjustified { .. }));
    }

    #[test]
    fn finds_a_refusal_on_later_events() {
        let mut all = Simulated::exact();
        let record = all.answer(|record| match &record.outcome {
            Outcome::Refused { saw } => saw.iter().any(|saw| saw.folded.last == record.after),
            _ => false,
        });
        record.after -= 1;
        record.before = 0;
        all.fails(|violation| matches!(violation, Violation::Unjustified { .. }));
    }

    #[test]
    fn finds_a_refusal_on_events_that_never_were() {
        let mut all = Simulated::exact();
        let Outcome::Refused { saw } = &mut all.answer(refused).outcome else { unreachable!("it was asked for") };
        saw[0].folded.digest += 1;
        all.fails(|violation| matches!(violation, Violation::Unjustified { .. }));
    }

    #[test]
    fn finds_an_empty_success_at_a_wrong_position() {
        let mut all = Simulated::exact();
        let record = all.answer(|record| nothing(record) && record.before > 0);
        let Outcome::Nothing { at, .. } = &mut record.outcome else { unreachable!("it was asked for") };
        *at = 0;
        all.fails(|violation| matches!(violation, Violation::Unjustified { .. }));
    }

    #[test]
    fn finds_a_stage_that_the_first_does_not_name() {
        let mut all = Simulated::exact();
        let record = all.answer(|record| matches!(&record.outcome, Outcome::Refused { saw } if saw.len() > 2));
        let Outcome::Refused { saw } = &mut record.outcome else { unreachable!("it was asked for") };
        saw.pop();
        all.fails(|violation| matches!(violation, Violation::Unjustified { .. }));
    }

    #[test]
    fn finds_a_lost_acknowledged_append() {
        let mut all = Simulated::exact();
        let of = all.log.last().unwrap().1.by().of;
        all.log.truncate(all.log.len() - of);
        all.fails_among_others(|violation| matches!(violation, Violation::Misplaced { last: None, .. }));
    }

    #[test]
    fn finds_an_answer_with_another_position() {
        let mut all = Simulated::exact();
        let Outcome::Written { at } = &mut all.answer(written).outcome else { unreachable!("it was asked for") };
        *at -= 1;
        all.fails(|violation| matches!(violation, Violation::Misplaced { .. }));
    }

    #[test]
    fn finds_an_append_before_its_command() {
        let mut all = Simulated::exact();
        let record = all.answer(written);
        record.before = record.after;
        all.fails(|violation| matches!(violation, Violation::Misplaced { .. }));
    }

    #[test]
    fn finds_an_append_written_twice() {
        let mut all = Simulated::exact();
        let last = all.log.last().unwrap().1.by().command;
        let again: Vec<_> = all.log.iter().filter(|(_, event)| event.by().command == last).cloned().collect();
        for (_, event) in again {
            all.log.push((all.head() + 1, event));
        }
        all.fails_among_others(|violation| matches!(violation, Violation::Torn { command, .. } if *command == last));
    }

    #[test]
    fn finds_half_an_append() {
        let mut all = Simulated::exact();
        while all.log.last().unwrap().1.by().n == 0 {
            all.log.pop();
        }
        all.log.pop();
        all.fails_among_others(|violation| matches!(violation, Violation::Torn { .. }));
    }

    #[test]
    fn finds_a_gap() {
        let mut all = Simulated::exact();
        all.log.last_mut().unwrap().0 += 1;
        all.fails_among_others(|violation| matches!(violation, Violation::Position { .. }));
    }

    #[test]
    fn finds_an_append_whose_answer_denies_it() {
        let answers: [fn(Record) -> Outcome; 2] =
            [|_| Outcome::Undone { error: "the log is busy".into() }, |record| Outcome::Nothing { at: record.before, saw: vec![] }];
        for answer in answers {
            let mut all = Simulated::exact();
            let record = all.answer(written);
            record.outcome = answer(record.clone());
            all.fails(|violation| matches!(violation, Violation::Written { .. }));
        }
    }

    #[test]
    fn finds_events_that_differ_from_the_decision() {
        let mut all = Simulated::exact();
        let event = all.log.iter_mut().rev().find_map(|(_, event)| match event {
            Happened::Described { text, .. } => Some(text),
            _ => None,
        });
        event.unwrap().push('!');
        all.fails(|violation| matches!(violation, Violation::Decided { .. }));
    }

    #[test]
    fn finds_faults_and_second_answers() {
        let mut all = Simulated::exact();
        all.records.push(all.records[200].clone());
        all.fails(|violation| matches!(violation, Violation::Answer { .. }));
        let mut all = Simulated::exact();
        all.answer(refused).outcome = Outcome::Fault { error: "out of tea".into() };
        all.fails(|violation| matches!(violation, Violation::Answer { .. }));
    }

    #[test]
    fn counts_an_append_without_a_record() {
        let mut all = Simulated::exact();
        let recorded = all.check().unwrap();
        all.records.retain(|record| !(written(record) && record.command.number < 10));
        let summary = all.check().unwrap();
        assert!(summary.unacknowledged > 0 && summary.unacknowledged == recorded.written - summary.written);
    }
}
