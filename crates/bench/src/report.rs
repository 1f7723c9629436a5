//! The report: the figures beside their bars, as a table and as JSON.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::{
    floor,
    machine::Machine,
    measure::{Load, Sample, Spread},
    scenarios::{self, thousands},
    sizes::Sizes,
};

/// A contender of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Contender {
    Cartlog,
    OneProcess,
    TwoProcesses,
    Loading,
    Live,
    Projected,
    Floor,
    PlainSql,
    Disintegrate,
}

impl Contender {
    /// The contenders that add items to a log.
    pub(crate) const OF_THE_LOG: [Self; 4] = [Self::Cartlog, Self::Loading, Self::Floor, Self::Disintegrate];
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cartlog => "Cartlog",
            Self::OneProcess => "one process",
            Self::TwoProcesses => "two processes",
            Self::Loading => "Cartlog without cache",
            Self::Live => "folded from the log",
            Self::Projected => "from the read model",
            Self::Floor => "INSERT of two rows",
            Self::PlainSql => "plain SQL",
            Self::Disintegrate => "disintegrate-postgres",
        })
    }
}

/// The samples of each round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    subject: String,
    pub(crate) scenario: String,
    pub(crate) tasks: usize,
    pub(crate) contender: Contender,
}

impl Key {
    pub(crate) fn new(subject: &str, scenario: impl Into<String>, tasks: usize, contender: Contender) -> Self {
        Self { subject: subject.to_owned(), scenario: scenario.into(), tasks, contender }
    }
}

/// One sample per round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    #[serde(flatten)]
    pub(crate) key: Key,
    pub(crate) rounds: Vec<Sample>,
}

impl Figure {
    pub(crate) fn per_second(&self) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(|sample| sample.per_second))
    }
}

/// A figure that is measured once.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Value {
    what: String,
    value: f64,
    unit: String,
}

/// A figure with its bar.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Bar {
    what: String,
    /// The spread of the rounds' ratios; `None` if this run did not measure it.
    measured: Option<Spread>,
    bar: f64,
    beyond: f64,
    /// Whether smaller is better.
    at_most: bool,
    unit: String,
    reached: Option<bool>,
    /// The second, harder bar.
    reached_beyond: Option<bool>,
}

/// The load generator compared with pgbench.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pgbench {
    clients: usize,
    pgbench_per_second: Vec<f64>,
    generator_per_second: Vec<f64>,
    /// The generator's rate divided by pgbench's.
    ratio: Option<Spread>,
    at_most_10_percent_slower: bool,
}

impl From<floor::PgbenchCheck> for Pgbench {
    fn from(check: floor::PgbenchCheck) -> Self {
        let ratio = Spread::of(check.generator.iter().zip(&check.pgbench).map(|(ours, theirs)| ours / theirs));
        Self {
            clients: check.clients,
            pgbench_per_second: check.pgbench,
            generator_per_second: check.generator,
            at_most_10_percent_slower: ratio.is_some_and(|ratio| ratio.median >= 0.9),
            ratio,
        }
    }
}

/// Everything that a run has measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    machine: Machine,
    pub(crate) sizes: Sizes,
    pub(crate) pgbench: Option<Pgbench>,
    bars: Vec<Bar>,
    pub(crate) figures: Vec<Figure>,
    values: Vec<Value>,
}

/// Selects a time of a sample.
type Of = fn(&Sample) -> Option<f64>;

impl Report {
    pub(crate) fn new(machine: Machine, sizes: Sizes) -> Self {
        Self { machine, sizes, pgbench: None, bars: vec![], figures: vec![], values: vec![] }
    }

    /// Adds one round's sample.
    pub(crate) fn add(&mut self, key: Key, sample: Sample) {
        match self.figures.iter_mut().find(|figure| figure.key == key) {
            Some(figure) => figure.rounds.push(sample),
            None => self.figures.push(Figure { key, rounds: vec![sample] }),
        }
    }

    /// Adds a figure that is measured once.
    pub(crate) fn value(&mut self, what: impl Into<String>, value: f64, unit: &str) {
        self.values.push(Value { what: what.into(), value, unit: unit.to_owned() });
    }

    fn rounds(&self, (scenario, tasks, contender): (&str, usize, Contender)) -> &[Sample] {
        let found = |figure: &&Figure| figure.key.scenario == scenario && figure.key.tasks == tasks && figure.key.contender == contender;
        self.figures.iter().find(found).map_or(&[], |figure| &figure.rounds)
    }

    /// Returns the spread of the rounds' ratios of rates.
    fn ratio(&self, ours: (&str, usize, Contender), rival: (&str, usize, Contender)) -> Option<Spread> {
        let pairs = self.rounds(ours).iter().zip(self.rounds(rival)).filter(|(_, rival)| rival.per_second > 0.0);
        Spread::of(pairs.map(|(ours, rival)| ours.per_second / rival.per_second))
    }

    /// Returns the spread of the rounds' ratios of a time, such as the median.
    fn times_as_long(&self, ours: (&str, usize, Contender), rival: (&str, usize, Contender), of: Of) -> Option<Spread> {
        let pairs = self.rounds(ours).iter().zip(self.rounds(rival));
        Spread::of(pairs.filter_map(|(ours, rival)| Some(of(ours)? / of(rival)?)))
    }

    /// Compares the figures with their bars.
    pub(crate) fn judge(&mut self) {
        // Compared figures stand together, in the order of the levels.
        let mut scenarios: Vec<(String, String)> = vec![];
        for Figure { key, .. } in &self.figures {
            let scenario = (key.subject.clone(), key.scenario.clone());
            if !scenarios.contains(&scenario) {
                scenarios.push(scenario);
            }
        }
        self.figures.sort_by_key(|Figure { key, .. }| {
            let place = scenarios.iter().position(|(subject, scenario)| (subject, scenario) == (&key.subject, &key.scenario));
            (place, key.tasks, key.contender as u8)
        });
        use Contender::{Cartlog, Disintegrate, Floor, Live, OneProcess, PlainSql, Projected, TwoProcesses};
        let sizes = self.sizes.clone();
        let (loud, first) = (sizes.loud(), sizes.before.first().copied().unwrap_or_default());
        let main = scenarios::one_item(first);
        let ours = (main.as_str(), loud, Cartlog);
        let mut bars = vec![];
        let mut bar = |what: String, measured, bar, beyond| bars.push(Bar::new(what, measured, bar, beyond, false, "times"));
        bar(format!("Add Item, {loud} tasks, to the INSERT at {loud} connections"), self.ratio(ours, (&main, loud, Floor)), 2.5, 4.0);
        let failed: f64 = self.rounds(ours).iter().map(|sample| sample.failed_per_second).sum();
        let none_failed =
            self.ratio(ours, (&main, loud, Disintegrate)).map(|ratio| if failed > 0.0 { Spread { median: 0.0, ..ratio } } else { ratio });
        bar("the same, to disintegrate-postgres' successes, with no failure of ours".to_owned(), none_failed, 100.0, 200.0);
        bar("one task, to the INSERT at one connection".to_owned(), self.ratio((&main, 1, Cartlog), (&main, 1, Floor)), 0.5, 0.8);
        for before in sizes.before.iter().skip(1) {
            let what = format!("{loud} tasks with {} events before, to {}", thousands(*before), thousands(first));
            bar(what, self.ratio((&scenarios::one_item(*before), loud, Cartlog), ours), 0.85, 0.95);
        }
        let last = sizes.before.last().copied().unwrap_or_default();
        let upkeep = |load: Load| [true, false].map(|beside| scenarios::upkeep_scenario(last, load, beside));
        let [kept_up, left_alone] = upkeep(Load::Tasks(loud));
        let what = format!("{loud} tasks with {} events before, while VACUUM and ANALYZE run, to without", thousands(last));
        bar(what, self.ratio((&kept_up, loud, Cartlog), (&left_alone, loud, Cartlog)), 0.85, 0.95);
        let new = scenarios::NEW_PRODUCT;
        for product in [scenarios::popular_product(sizes.crowd), scenarios::counted_product(sizes.crowd)] {
            bar(
                format!("{product}, {loud} tasks, to a new product"),
                self.ratio((&product, loud, Cartlog), (new, loud, Cartlog)),
                0.9,
                1.0,
            );
            let first = self.ratio((&scenarios::first_command(&product), 1, Cartlog), (&scenarios::first_command(new), 1, Cartlog));
            bar(format!("{product}, the first command on it, to a new product's"), first, 0.9, 1.0);
        }
        // Both meet one conflict. Only the number of earlier changes differs.
        let counted = scenarios::counted_product(sizes.crowd);
        let (many, one) = (scenarios::first_command(&counted), scenarios::first_command(scenarios::REPORTED_PRODUCT));
        let flat = self.ratio((&many, 1, Cartlog), (&one, 1, Cartlog));
        bar(format!("{counted}, the first command on it, to one change's"), flat, 0.9, 1.0);
        let one = (scenarios::HTTP, loud, OneProcess);
        bar(format!("Add Item over HTTP, {loud} connections, to the INSERT"), self.ratio(one, (scenarios::HTTP, loud, Floor)), 1.0, 2.0);
        bar("two cart-commands processes together, to one".to_owned(), self.ratio((scenarios::HTTP, loud, TwoProcesses), one), 0.9, 1.0);
        let translated = self.ratio((scenarios::KAFKA_IN, 1, Cartlog), (scenarios::KAFKA_IN, 1, Floor));
        bar("inventory messages in from Kafka, to the INSERT at one connection".to_owned(), translated, 5.0, 20.0);
        for crowd in sizes.crowds().filter(|crowd| *crowd > 1) {
            let shoppers = self.ratio((scenarios::SHOPPER, crowd, Cartlog), (scenarios::SHOPPER, crowd, PlainSql));
            bar(format!("whole shoppers, {crowd} at once, to the same in plain SQL"), shoppers, 0.35, 0.6);
        }
        let live = (scenarios::READ, loud, Live);
        let select = (scenarios::READ, loud, PlainSql);
        bar(format!("{}, folded from the log, {loud} at once, to a SELECT", scenarios::READ), self.ratio(live, select), 0.35, 0.6);
        let projected = (scenarios::READ, loud, Projected);
        bar(format!("{}, from the read model, {loud} at once, to a SELECT", scenarios::READ), self.ratio(projected, select), 0.35, 0.6);
        let refusals = self.ratio((scenarios::REFUSAL, loud, Cartlog), live);
        bar(format!("{}, {loud} at once, to reads folded from the log", scenarios::REFUSAL), refusals, 0.8, 1.0);
        let published = self.ratio((scenarios::PUBLICATIONS, 1, Cartlog), (scenarios::ONE_INSERT, 1, Floor));
        bar(format!("{}, to the INSERT at one connection", scenarios::PUBLICATIONS), published, 1.0, 3.0);
        let listener = (scenarios::CAUGHT_UP, 1, Disintegrate);
        let caught_up = self.ratio((scenarios::CAUGHT_UP, 1, Cartlog), listener);
        bar("Cart Items, caught up, to disintegrate-postgres' listener".to_owned(), caught_up, 30.0, 60.0);
        if sizes.before.len() > 1 {
            let [small, large] = [first, last].map(scenarios::caught_up_with);
            let slower = self.ratio((&large, 1, Cartlog), (&small, 1, Cartlog));
            bar(format!("{large}, to {}", thousands(first)), slower, 0.8, 0.95);
        }
        let half: Of = |sample| sample.p50_ms;
        let most: Of = |sample| sample.p99_ms;
        // These are ratios of rates: the other read takes this many times as long.
        let long = self.ratio(live, (scenarios::LONG_READ, loud, Live));
        bars.push(Bar::new(format!("{}, time to that of 4 changes", scenarios::LONG_READ), long, 1.5, 1.25, true, "times"));
        if sizes.before.len() > 1 {
            let large = scenarios::read_with(last);
            let what = format!("{large}, time to that with {}", thousands(first));
            bars.push(Bar::new(what, self.ratio(live, (&large, loud, Live)), 1.1, 1.05, true, "times"));
        }
        let [kept_up, left_alone] = upkeep(Load::Offered(scenarios::OFFERED));
        for (beside, alone) in [(kept_up.as_str(), left_alone.as_str()), (scenarios::OFFERED_BESIDE, scenarios::OFFERED_ALONE)] {
            let (beside, alone) = ((beside, 1, Cartlog), (alone, 1, Cartlog));
            bars.push(Bar::new(format!("{}, done, to alone", beside.0), self.ratio(beside, alone), 0.99, 1.0, false, "times"));
            for (which, of, at_most) in [("median", half, 1.5), ("p99", most, 5.0)] {
                let what = format!("{}, {which}, to alone", beside.0);
                bars.push(Bar::new(what, self.times_as_long(beside, alone, of), at_most, at_most / 2.0 + 0.5, true, "times"));
            }
        }
        for (what, most) in [(scenarios::COMMANDS_IDLE.to_owned(), 50.0), (scenarios::commands_after(sizes.carts), 200.0)] {
            let measured = self.values.iter().find(|value| value.what == what).and_then(|value| Spread::of([value.value]));
            bars.push(Bar::new(format!("resident memory of {what}"), measured, most, most / 2.0, true, "MB"));
        }
        let latencies: [(&str, Contender, &str, Of, [f64; 2]); 7] = [
            (scenarios::SHOPPER, Cartlog, "one alone, median of five requests", half, [4.0, 2.5]),
            (scenarios::READ, Live, "folded from the log, one alone, median", half, [0.4, 0.25]),
            (scenarios::VISIBLE, Cartlog, "median", half, [5.2, 2.6]),
            (scenarios::VISIBLE, Cartlog, "p99", most, [8.1, 4.05]),
            (scenarios::PUBLISHED, Cartlog, "median", half, [8.7, 4.35]),
            (scenarios::PUBLISHED, Cartlog, "p99", most, [17.0, 8.5]),
            (scenarios::ARCHIVED, Cartlog, "median", half, [30.0, 15.0]),
        ];
        for (scenario, contender, which, of, [most, beyond]) in latencies {
            let measured = Spread::of(self.rounds((scenario, 1, contender)).iter().filter_map(of));
            bars.push(Bar::new(format!("{scenario}, {which}"), measured, most, beyond, true, "ms"));
        }
        let idle = self.values.iter().find(|value| value.what == scenarios::SERVICES_IDLE).and_then(|value| Spread::of([value.value]));
        bars.push(Bar::new(scenarios::SERVICES_IDLE.to_owned(), idle, 10.0, 5.0, true, "queries a second"));
        self.bars = bars;
    }

    /// Returns the table for the terminal.
    pub(crate) fn table(&self) -> String {
        let mut text = self.machine.lines().iter().fold(String::new(), |all, line| all + "  " + line + "\n");
        let sizes = &self.sizes;
        let _ =
            writeln!(text, "  {} rounds of {} s; medians, least to most; failures a second; p99", sizes.rounds, sizes.length.as_secs_f64());
        if let Some(Pgbench { clients, ratio: Some(ratio), at_most_10_percent_slower, .. }) = &self.pgbench {
            let verdict = if *at_most_10_percent_slower {
                "not more than 10 % below it"
            } else {
                "MORE than 10 % below it: the INSERT could be faster"
            };
            let _ = writeln!(text, "  our load generator to `pgbench -M prepared`, {clients} clients: {}, {verdict}", times(ratio));
        }
        let mut scenario = "";
        for figure in &self.figures {
            if figure.key.scenario != scenario {
                scenario = &figure.key.scenario;
                let _ = writeln!(text, "\n{}: {scenario}", figure.key.subject);
            }
            let (Some(rate), rounds) = (figure.per_second(), &figure.rounds) else { continue };
            let failed = Spread::of(rounds.iter().map(|sample| sample.failed_per_second)).map_or(0.0, |failed| failed.median);
            let failed = if failed > 0.0 { format!("{failed:.0} failed") } else { String::new() };
            let p99 = Spread::of(rounds.iter().filter_map(|sample| sample.p99_ms))
                .map_or_else(String::new, |p99| format!("{:.2} ms", p99.median));
            let range = format!("{:.0} to {:.0}", rate.min, rate.max);
            let Key { tasks, contender, .. } = &figure.key;
            let _ = writeln!(text, "  {tasks:>4}  {contender:<22}  {:>9.0} /s  {range:<20}  {failed:<14}  {p99:>10}", rate.median);
        }
        let _ = writeln!(text);
        for failure in self.failures() {
            let _ = writeln!(text, "{failure}");
        }
        let loud = self.sizes.loud();
        for beside in [scenarios::BESIDE, scenarios::FOLLOWING] {
            if let Some(done) = self.ratio((beside, loud, Contender::Cartlog), (scenarios::ALONE, loud, Contender::Cartlog)) {
                let _ = writeln!(text, "{beside}, {loud} tasks, to alone on the same cores: {}", times(&done));
            }
        }
        let _ = writeln!(text, "\nthe bars (and, in brackets, what lies beyond them)");
        if self.sizes.quick {
            let _ = writeln!(text, "  This was quick: it shows that everything works, and no figure of it means anything.");
        }
        let width = self.bars.iter().map(|bar| bar.what.chars().count()).max().unwrap_or_default();
        let (measured, others): (Vec<_>, Vec<_>) = self.bars.iter().partition(|bar| bar.measured.is_some());
        for bar in measured {
            let _ = writeln!(text, "  {:<width$}  {}", bar.what, bar.verdict());
        }
        if !others.is_empty() {
            let _ = writeln!(text, "  and {} more, which this run did not measure", others.len());
        }
        text
    }

    /// Lists failures. Cartlog should have none.
    fn failures(&self) -> impl Iterator<Item = String> {
        let ours = self.figures.iter().filter(|figure| figure.key.contender != Contender::Disintegrate);
        ours.filter_map(|figure| {
            let failure = figure.rounds.iter().find_map(|sample| sample.first_failure.as_ref())?;
            Some(format!("{} failed in \"{}\", first with: {failure}", figure.key.contender, figure.key.scenario))
        })
    }
}

impl Bar {
    fn new(what: String, measured: Option<Spread>, bar: f64, beyond: f64, at_most: bool, unit: &str) -> Self {
        let reaches = |bar: f64| measured.map(|measured| if at_most { measured.median <= bar } else { measured.median >= bar });
        Self { what, measured, bar, beyond, at_most, unit: unit.to_owned(), reached: reaches(bar), reached_beyond: reaches(beyond) }
    }

    fn verdict(&self) -> String {
        let Some(measured) = &self.measured else { return "not measured".to_owned() };
        let (bound, reached) = (if self.at_most { "at most" } else { "at least" }, self.reached.unwrap_or_default());
        let verdict = match (reached, self.reached_beyond.unwrap_or_default()) {
            (false, _) => "NOT REACHED",
            (true, false) => "reached",
            (true, true) => "reached, and beyond",
        };
        let measured = match self.unit.as_str() {
            "times" => times(measured),
            "MB" => format!("{:.0} MB", measured.median),
            unit => format!("{:.2} {unit}", measured.median),
        };
        format!("{measured:<26}  {bound} {} ({}): {verdict}", self.bar, self.beyond)
    }
}

fn times(ratio: &Spread) -> String {
    format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_reached_from_its_own_side() {
        let at_least = |median| Bar::new(String::new(), Spread::of([median]), 2.5, 4.0, false, "times");
        assert_eq!([2.4, 2.5, 4.0].map(|median| at_least(median).reached), [Some(false), Some(true), Some(true)]);
        assert_eq!([2.4, 2.5, 4.0].map(|median| at_least(median).reached_beyond), [Some(false), Some(false), Some(true)]);
        let at_most = |value| Bar::new(String::new(), Spread::of([value]), 50.0, 25.0, true, "MB");
        assert_eq!([51.0, 50.0, 25.0].map(|value| at_most(value).reached), [Some(false), Some(true), Some(true)]);
        assert_eq!([51.0, 50.0, 25.0].map(|value| at_most(value).reached_beyond), [Some(false), Some(false), Some(true)]);
        assert_eq!(Bar::new(String::new(), None, 1.0, 2.0, false, "times").verdict(), "not measured");
    }
}
