//! The embedded servers start, die, come back and keep what they were given.

use std::time::Duration;

use embedded::kafka::{self, Kafka, Topic};
use embedded::layout::Layout;
use embedded::postgres::Postgres;
use embedded::process::Process;
use embedded::report::Report;
use embedded::{Error, backup, database, distribution, standby};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::Connection;
use tokio::process::Command;

#[tokio::test]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn killed_postgres_keeps_what_was_committed() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch("postgres-killed").unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &directory).await.unwrap();
    database::create(&postgres.url("postgres", "postgres"), "kept").await.unwrap();
    database::create(&postgres.url("postgres", "postgres"), "kept").await.unwrap();
    let pool = database::connect(&postgres.url("postgres", "kept")).await.unwrap();
    sqlx::raw_sql("CREATE TABLE word (word text); INSERT INTO word VALUES ('kept')").execute(&pool).await.unwrap();

    postgres.kill().await.unwrap();
    postgres.restart().await.unwrap();

    let pool = database::connect(&postgres.url("postgres", "kept")).await.unwrap();
    let word: String = sqlx::query_scalar("SELECT word FROM word").fetch_one(&pool).await.unwrap();
    assert_eq!(word, "kept");
    drop(pool);
    postgres.stop().await.unwrap();
    assert!(!database::lets_in(&postgres.url("postgres", "kept")).await);
}

#[tokio::test]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn migrations_create_roles_that_can_connect() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch("postgres-migrated").unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &directory).await.unwrap();
    database::create(&postgres.url("postgres", "postgres"), database::NAME).await.unwrap();
    let owner = postgres.url("postgres", database::NAME);
    database::migrate(&owner).await.unwrap();
    database::migrate(&owner).await.unwrap();
    let pool = database::connect(&owner).await.unwrap();
    let roles: Vec<String> =
        sqlx::query_scalar("SELECT rolname FROM pg_roles WHERE rolname LIKE 'cartlog%' AND rolcanlogin").fetch_all(&pool).await.unwrap();
    pool.close().await;
    assert!(roles.len() > 3, "{roles:?}");
    for role in roles {
        assert!(database::lets_in(&database::for_role(&owner, &role).unwrap()).await, "{role}");
    }
    postgres.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "starts Kafka: cargo dev test"]
async fn killed_kafka_keeps_what_was_acknowledged() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::kafka(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch("kafka-killed").unwrap();
    let mut kafka = Kafka::start_on_free_ports(&distribution, &directory).await.unwrap();
    let servers = kafka.bootstrap_servers();
    let topic = Topic { name: "words", partitions: 2, max_message_bytes: Some(2_000_000) };
    kafka::create_topics(&servers, std::slice::from_ref(&topic)).await.unwrap();
    kafka::create_topics(&servers, &[topic]).await.unwrap();
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
    let record = FutureRecord::to("words").key("k").payload("kept").partition(1);
    producer.send(record, Duration::from_secs(20)).await.unwrap();

    kafka.kill().await.unwrap();
    kafka.restart().await.unwrap();

    let high = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
        consumer.fetch_watermarks("words", 1, Duration::from_secs(20)).unwrap().1
    });
    assert_eq!(high.await.unwrap(), 1);
    kafka.stop().await.unwrap();
}

/// Kafka takes a comma for the end of a directory, Java a colon, and a properties file a backslash.
#[tokio::test]
#[ignore = "starts PostgreSQL and Kafka: cargo dev test"]
async fn servers_keep_their_data_in_a_directory_with_any_name() {
    let layout = Layout::discover().unwrap();
    let directory = layout.scratch(r#"a,b: c*d \u0041 #e=f 'g' "h" $HOME `i` %d{x}"#).unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &directory).await.unwrap();
    assert!(database::lets_in(&postgres.url("postgres", "postgres")).await);
    postgres.stop().await.unwrap();

    let distribution = distribution::kafka(&layout, &Report::quiet()).await.unwrap();
    let mut kafka = Kafka::start_on_free_ports(&distribution, &directory).await.unwrap();
    let topic = Topic { name: "words", partitions: 1, max_message_bytes: None };
    kafka::create_topics(&kafka.bootstrap_servers(), &[topic]).await.unwrap();
    kafka.stop().await.unwrap();
    assert!(directory.join("kafka/data/words-0").is_dir());
    // Nothing lies beside the directory, under a part of its name.
    let beside = std::fs::read_dir(directory.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let beside: Vec<_> = beside.filter(|name| name.to_string_lossy().starts_with("a,b") || name == "a").collect();
    assert_eq!(beside, [directory.file_name().unwrap()]);
}

/// A standby has every commit that its primary acknowledged, and takes over.
#[tokio::test]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn standby_follows_and_is_promoted() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch("postgres-standby").unwrap();
    let mut primary = Postgres::start_on_free_port(&layout, &distribution, &directory.join("primary")).await.unwrap();
    let mut session = sqlx::PgConnection::connect(&primary.url("postgres", "postgres")).await.unwrap();
    sqlx::raw_sql("CREATE TABLE word (word text); INSERT INTO word VALUES ('before')").execute(&mut session).await.unwrap();
    let mut standby = standby::start(&layout, &primary, primary.port(), &directory.join("standby"), "second").await.unwrap();
    for statement in
        ["ALTER SYSTEM SET synchronous_standby_names = 'second'", "SELECT pg_reload_conf()", "INSERT INTO word VALUES ('after')"]
    {
        sqlx::raw_sql(statement).execute(&mut session).await.unwrap();
    }
    primary.kill().await.unwrap();
    standby::promote(&standby).await.unwrap();
    let mut session = sqlx::PgConnection::connect(&standby.url("postgres", "postgres")).await.unwrap();
    let words: Vec<String> = sqlx::query_scalar("SELECT word FROM word").fetch_all(&mut session).await.unwrap();
    assert_eq!(words, ["before", "after"]);
    sqlx::raw_sql("INSERT INTO word VALUES ('new')").execute(&mut session).await.unwrap();
    drop(session);
    standby.stop().await.unwrap();
}

/// A volume that is put back has the earlier data, on the same timeline.
#[tokio::test]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn volume_that_is_put_back_has_the_earlier_data() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch("postgres-put-back").unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &directory).await.unwrap();
    let url = postgres.url("postgres", "postgres");
    let run = async |statement: &str| {
        let mut session = sqlx::PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut session).await.unwrap();
    };
    run("CREATE TABLE word (word text); INSERT INTO word VALUES ('early')").await;
    postgres.stop().await.unwrap();
    let copied = postgres.data().with_file_name("copied");
    backup::copy_stopped(&postgres, &copied).await.unwrap();
    postgres.restart().await.unwrap();
    run("INSERT INTO word VALUES ('late')").await;
    postgres.kill().await.unwrap();
    backup::put_back(&postgres, &copied).await.unwrap();
    postgres.restart().await.unwrap();
    let mut session = sqlx::PgConnection::connect(&url).await.unwrap();
    let words: Vec<String> = sqlx::query_scalar("SELECT word FROM word").fetch_all(&mut session).await.unwrap();
    assert_eq!(words, ["early"]);
    let timeline: i32 = sqlx::query_scalar("SELECT timeline_id FROM pg_control_checkpoint()").fetch_one(&mut session).await.unwrap();
    assert_eq!(timeline, 1);
    drop(session);
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn until_ready_reports_the_last_words_of_an_ended_process() {
    let directory = Layout::discover().unwrap().scratch("process-ends").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo out of tea; exit 3"]);
    // Either it is gone at once, or before it is ready.
    let error = match Process::spawn("kettle", command, &directory.join("kettle.log")) {
        Err(error) => error,
        Ok(mut kettle) => {
            let never = || async { Err("not ready".to_owned()) };
            kettle.until_ready(Duration::from_secs(20), never).await.unwrap_err()
        }
    };
    assert!(matches!(&error, Error::Ended { .. }), "{error}");
    assert!(error.to_string().contains("kettle") && error.to_string().contains("out of tea"), "{error}");
}

#[tokio::test]
async fn frozen_process_continues_after_thaw() {
    let directory = Layout::discover().unwrap().scratch("process-frozen").unwrap();
    let mut command = Command::new("sleep");
    command.arg("0.2");
    let mut sleeper = Process::spawn("sleeper", command, &directory.join("sleeper.log")).unwrap();
    sleeper.freeze().unwrap();
    let frozen = tokio::time::timeout(Duration::from_millis(500), sleeper.wait()).await;
    assert!(frozen.is_err(), "a frozen process ended");
    sleeper.thaw().unwrap();
    assert!(sleeper.wait().await.unwrap().success());
}
