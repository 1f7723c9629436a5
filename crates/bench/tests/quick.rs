//! Runs the program like `cargo dev bench --quick`: every part yields figures, and the report can be read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::{path::Path, process::Command};

use serde_json::Value;

/// Runs one part, and returns its report and its chart.
fn quick(subject: &str) -> (Value, String) {
    quick_with(subject, &[])
}

/// Runs one part with more arguments.
fn quick_with(subject: &str, arguments: &[&str]) -> (Value, String) {
    let from = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo dev test`, which sets it"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{subject}"));
    // An earlier run may have left files.
    let _ = std::fs::remove_dir_all(&out);
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args([subject, "--quick", "--out"])
        .arg(&out)
        .args(arguments)
        .args(["--database-url", &from("CARTLOG_TEST_DATABASE_URL")])
        .args(["--kafka", &from("CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS")])
        .args(["--programs", &from("CARTLOG_TEST_BIN_DIR")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    (report, std::fs::read_to_string(out.join("chart.svg")).unwrap())
}

/// Returns scenario, tasks and contender of every figure. Each has one round with successes, and no failures except disintegrate's.
fn figures(report: &Value) -> Vec<(String, u64, String)> {
    let of = |figure: &Value, name: &str| figure[name].as_str().unwrap().to_owned();
    let figures = report["figures"].as_array().unwrap().iter().map(|figure| {
        let [round] = figure["rounds"].as_array().unwrap().as_slice() else { panic!("one round: {figure}") };
        let (done, failed) = (round["per_second"].as_f64().unwrap(), round["failed_per_second"].as_f64().unwrap());
        // In so short a time, disintegrate may have no success on a hot cart.
        if figure["contender"] == "disintegrate" {
            assert!(done + failed > 0.0, "{figure}");
        } else {
            assert!(done > 0.0 && failed == 0.0, "{figure}");
        }
        (of(figure, "scenario"), figure["tasks"].as_u64().unwrap(), of(figure, "contender"))
    });
    figures.collect()
}

/// Counts the measured bars.
fn measured(report: &Value) -> usize {
    let bars = report["bars"].as_array().unwrap();
    bars.iter().filter(|bar| bar["measured"]["median"].as_f64().is_some_and(|median| median > 0.0) && bar["reached"].is_boolean()).count()
}

#[test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
fn log_part_yields_all_figures() {
    let (report, svg) = quick("log");
    let figures = figures(&report);
    for scenario in ["a new cart each, 1,000 events before", "three items a cart", "one hot cart", "one product"] {
        for tasks in [1, 4] {
            for contender in ["cartlog", "loading", "floor", "disintegrate"] {
                assert!(figures.contains(&(scenario.into(), tasks, contender.into())), "{scenario}, {tasks}, {contender}");
            }
        }
    }
    assert!(svg.contains("a new cart each") && svg.ends_with("</svg>\n"));
    // Four products, each under load and for its first command; full and fixed rate, each with and without VACUUM.
    assert_eq!(figures.len(), 4 * 2 * 4 + 4 + 4 + 4);
    assert_eq!(measured(&report), 3 + 5 + 4);
    assert!(report["machine"]["postgres"].as_str().unwrap().starts_with("PostgreSQL 18"));
}

#[test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
fn http_part_yields_all_figures() {
    let (report, _) = quick("http");
    let of = |contender: &str| ("Add Item over HTTP".to_owned(), 4, contender.to_owned());
    assert_eq!(figures(&report), ["one_process", "two_processes", "floor"].map(of));
    let [idle, full] = report["values"].as_array().unwrap().as_slice() else { panic!("two values") };
    assert!(idle["value"].as_f64().unwrap() > 1.0 && full["value"].as_f64() >= idle["value"].as_f64(), "{idle} {full}");
    assert_eq!(measured(&report), 4);
}

#[test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
fn kafka_part_yields_all_figures() {
    let (report, _) = quick("kafka");
    let of = |contender: &str| ("inventory messages in from Kafka".to_owned(), 1, contender.to_owned());
    assert_eq!(figures(&report), ["cartlog", "floor"].map(of));
    assert_eq!(measured(&report), 1);
}

#[test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
fn shop_part_yields_all_figures() {
    let (report, svg) = quick("shop");
    let of = |(scenario, tasks, contender): (&str, u64, &str)| (scenario.to_owned(), tasks, contender.to_owned());
    let all = [
        ("whole shoppers", 1, "cartlog"),
        ("whole shoppers", 1, "plain_sql"),
        ("whole shoppers", 4, "cartlog"),
        ("whole shoppers", 4, "plain_sql"),
        ("from Submit Cart's answer to the message, at 20 a second", 1, "cartlog"),
        ("publications, caught up", 1, "cartlog"),
        ("the INSERT beside the publications", 1, "floor"),
    ];
    assert_eq!(figures(&report), all.map(of));
    // Shoppers at once and alone, the message's median and p99, publications.
    assert_eq!(measured(&report), 5);
    assert!(svg.contains("whole shoppers"));
}

#[test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
fn reads_part_yields_all_figures() {
    let (report, svg) = quick("reads");
    let read = "reads of a cart of 3 items";
    let of = |(scenario, tasks, contender): (&str, u64, &str)| (scenario.to_owned(), tasks, contender.to_owned());
    let all = [
        (read, 1, "live"),
        (read, 1, "projected"),
        (read, 1, "plain_sql"),
        (read, 4, "live"),
        (read, 4, "projected"),
        (read, 4, "plain_sql"),
        ("reads of a cart of 100 changes", 4, "live"),
        ("refusals of a full cart", 4, "cartlog"),
    ];
    assert_eq!(figures(&report), all.map(of));
    // Both forms to a SELECT, refusals, the long cart, one reader alone.
    assert_eq!(measured(&report), 5);
    assert!(svg.contains(read));
}

#[test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
fn projections_part_yields_all_figures() {
    let (report, _) = quick("projections");
    let of = |(scenario, tasks, contender): (&str, u64, &str)| (scenario.to_owned(), tasks, contender.to_owned());
    let all = [
        ("Cart Items, caught up", 1, "cartlog"),
        ("Cart Items, caught up", 1, "disintegrate"),
        ("Add Item on a log that nobody projects", 4, "cartlog"),
        ("Add Item while the read models catch up with the log", 4, "cartlog"),
        ("Add Item while the read models follow the log", 4, "cartlog"),
        ("Add Item, 10,000 a second, on a log that nobody projects", 1, "cartlog"),
        ("Add Item, 10,000 a second, while the read models catch up with the log", 1, "cartlog"),
        ("from a commit to the read model, at 1,000 events a second", 1, "cartlog"),
        ("from a change of price to the last item archived", 1, "cartlog"),
    ];
    assert_eq!(figures(&report), all.map(of));
    // One of catching up, three of appending at the same time, three of latencies, one of idle services.
    assert_eq!(measured(&report), 8);
    // The lag at the end of each.
    assert_eq!(report["values"].as_array().unwrap().len(), 3 + 1);
}

#[test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
fn catchup_part_yields_all_figures() {
    let (report, _) = quick_with("catchup", &["--before", "1k,2k"]);
    let of = |events: &str| (format!("Cart Items, caught up with {events} events"), 1, "cartlog".to_owned());
    assert_eq!(figures(&report), ["1,000", "2,000"].map(of));
    assert_eq!(measured(&report), 1);
}
