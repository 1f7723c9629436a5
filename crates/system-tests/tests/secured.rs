//! The services over TLS, each with its own user, and their errors when a server refuses them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use embedded::kafka::{Kafka, Secured};
use embedded::layout::Layout;
use embedded::postgres::Postgres;
use embedded::report::Report;
use embedded::{database, distribution};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;
use shop::services::{self, COMMANDS, Kind, PUBLISHER, TRANSLATOR};
use sqlx::PgPool;
use system_tests::{ALL, READY, Shop};
use test_support::eventually;
use uuid::Uuid;

/// The password of the roles and of the broker's user.
const PASSWORD: &str = "hunter2hunter2";
const WRONG: &str = "correcthorse";
const USER: &str = "cartlog";

/// A certificate authority and the certificates that it signed, in files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory: directory.to_owned() }
    }

    fn certificate(&self) -> String {
        self.directory.join("ca.pem").display().to_string()
    }

    /// Signs a certificate for a server with these names, or for a client with this name.
    fn sign(&self, names: &[&str], client: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, client);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Makes a running server refuse connections without TLS. The publisher needs a certificate, the others a password.
async fn require_tls(owner: &PgPool, authority: &Authority) {
    for kind in ALL {
        sqlx::query(&format!("ALTER ROLE {} PASSWORD '{PASSWORD}'", kind.role)).execute(owner).await.unwrap();
    }
    sqlx::query(&format!("ALTER ROLE cartlog_operator PASSWORD '{PASSWORD}'")).execute(owner).await.unwrap();
    let data: String = sqlx::query_scalar("SHOW data_directory").fetch_one(owner).await.unwrap();
    let data = PathBuf::from(data);
    let server = data.metadata().unwrap();
    let (certificate, key) = authority.sign(&["127.0.0.1"], "server");
    let rules = "host all postgres 127.0.0.1/32 trust\n\
                 hostssl all cartlog_publisher 127.0.0.1/32 cert\n\
                 hostssl all all 127.0.0.1/32 scram-sha-256\n";
    for (name, content) in
        [("server.crt", certificate.as_str()), ("server.key", &key), ("ca.crt", &authority.issuer.pem()), ("pg_hba.conf", rules)]
    {
        let path = data.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        chown(&path, Some(server.uid()), Some(server.gid())).unwrap();
    }
    for setting in ["ssl = on", "ssl_ca_file = 'ca.crt'"] {
        sqlx::query(&format!("ALTER SYSTEM SET {setting}")).execute(owner).await.unwrap();
    }
    sqlx::query("SELECT pg_reload_conf()").execute(owner).await.unwrap();
    eventually("the server has read its settings", || async {
        let ssl: String = sqlx::query_scalar("SHOW ssl").fetch_one(owner).await.unwrap();
        (ssl == "on").then_some(())
    })
    .await;
}

struct Servers {
    // Dropping them kills them.
    postgres: Postgres,
    _kafka: Kafka,
    /// The broker's listener with TLS and users.
    secured: String,
    authority: Authority,
    /// An authority that nobody trusts.
    other: Authority,
}

impl Servers {
    async fn start(test: &str) -> (Self, Shop) {
        let layout = Layout::discover().unwrap();
        let directory = layout.scratch(test).unwrap();
        let authority = Authority::new(&directory.join("authority"));
        let other = Authority::new(&directory.join("other"));
        let (certificate, key) = authority.sign(&["127.0.0.1"], "broker");
        let identity = authority.write("broker.pem", &(key + &certificate));
        let (postgres, kafka) = (
            distribution::postgres(&layout, &Report::quiet()).await.unwrap(),
            distribution::kafka(&layout, &Report::quiet()).await.unwrap(),
        );
        let postgres = Postgres::start_on_free_port(&layout, &postgres, &directory).await.unwrap();
        let secured = Secured { identity: &identity, user: USER, password: PASSWORD };
        let (kafka, port) = Kafka::start_secured(&kafka, &directory, &secured).await.unwrap();
        database::create(&postgres.url("postgres", "postgres"), "cartlog").await.unwrap();
        let owner = postgres.url("postgres", "cartlog");
        database::migrate(&owner).await.unwrap();
        let pool = database::connect(&owner).await.unwrap();
        require_tls(&pool, &authority).await;
        let shop = Shop::on(test, pool, HashMap::from(ALL.map(|kind| (kind.name, String::new()))), kafka.bootstrap_servers()).await;
        let servers = Self { postgres, _kafka: kafka, secured: format!("127.0.0.1:{port}"), authority, other };
        (servers, shop)
    }

    fn url(&self, role: &str, password: &str, authority: &Authority) -> String {
        let (port, ca) = (self.postgres.port(), authority.certificate());
        format!("postgres://{role}:{password}@127.0.0.1:{port}/cartlog?sslmode=verify-full&sslrootcert={ca}")
    }

    /// The settings with which a service can connect.
    fn settings(&self, shop: &Shop, kind: Kind) -> services::Settings {
        let mut settings = shop.settings(kind, &format!("{}.log", kind.name));
        settings.database_url = self.url(kind.role, PASSWORD, &self.authority);
        settings.kafka_bootstrap_servers = self.secured.clone();
        settings.environment.extend(self.kafka("SCRAM-SHA-512", PASSWORD, &self.authority));
        settings
    }

    fn kafka(&self, mechanism: &str, password: &str, authority: &Authority) -> [(String, String); 5] {
        [
            ("SECURITY_PROTOCOL", "sasl_ssl"),
            ("SASL_MECHANISM", mechanism),
            ("SASL_USERNAME", USER),
            ("SASL_PASSWORD", password),
            ("SSL_CA_LOCATION", &authority.certificate()),
        ]
        .map(|(name, value)| (format!("CARTLOG_KAFKA_{name}"), value.to_owned()))
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn secured_shop_works_and_logs_no_secret() {
    let (servers, mut shop) = Servers::start("secured").await;
    for kind in ALL {
        let mut settings = servers.settings(&shop, kind);
        if kind == PUBLISHER {
            let (certificate, key) = servers.authority.sign(&[], kind.role);
            let certificate = servers.authority.write("publisher.crt", &certificate);
            let key = servers.authority.write("publisher.key", &key);
            settings.database_url = format!(
                "postgres://{}@127.0.0.1:{}/cartlog?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
                kind.role,
                servers.postgres.port(),
                servers.authority.certificate(),
                certificate.display(),
                key.display()
            );
            settings.environment.extend(servers.kafka("PLAIN", PASSWORD, &servers.authority));
        }
        // Whatever the log level, no secret may be logged.
        settings.environment.push(("CARTLOG_LOG_FILTER".into(), "trace".into()));
        shop.launch(kind, settings);
    }
    for kind in ALL {
        shop.service(kind).until_ready(READY).await.unwrap();
    }
    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    shop.produce("inventories", &[(product, json!({"product_uuid": product, "inventory": 3}))]).await;
    shop.until_count("InventoryChanged", 1).await;
    assert_eq!(shop.add(cart, product, "9.99").await.0, 200);
    assert_eq!(shop.submit(cart).await.0, 200);
    shop.until_count("CartPublished", 1).await;
    assert_eq!(shop.published(1).await[0].key, cart.to_string());

    let (encrypted, plain): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE s.ssl), count(*) FILTER (WHERE NOT s.ssl)
         FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename LIKE 'cartlog_%'",
    )
    .fetch_one(&shop.pool)
    .await
    .unwrap();
    assert!(encrypted >= 8 && plain == 0, "{encrypted} connections are over TLS, and {plain} are not");

    // Every user of the machine, and every reader of logs and metrics, can see these.
    for kind in ALL {
        let log = std::fs::read_to_string(shop.service(kind).process().log()).unwrap();
        assert!(log.contains("TRACE") && log.contains("starting"), "{}: {log}", kind.name);
        let command_line = std::fs::read(format!("/proc/{}/cmdline", shop.service(kind).process().identity().pid)).unwrap();
        let mut seen = vec![("its log", log), ("its command line", String::from_utf8_lossy(&command_line).into_owned())];
        for path in ["/metrics", "/ready", "/openapi.json", "/nowhere"] {
            seen.push((path, reqwest::get(format!("{}{path}", shop.url(kind))).await.unwrap().text().await.unwrap()));
        }
        let key = std::fs::read_to_string(servers.authority.directory.join("publisher.key")).unwrap();
        for (place, text) in seen {
            for secret in [PASSWORD, key.lines().nth(1).unwrap()] {
                assert!(!text.contains(secret), "{} tells {secret:?} in {place}", kind.name);
            }
        }
    }

    // cartctl uses the same variables.
    let cartctl = |arguments: &[&str], password| {
        let mut command = Command::new(Path::new(&std::env::var_os("CARTLOG_TEST_BIN_DIR").unwrap()).join("cartctl"));
        command.args(arguments).env("DATABASE_URL", servers.url("cartlog_operator", PASSWORD, &servers.authority));
        command.env("KAFKA_BOOTSTRAP_SERVERS", &servers.secured).envs(servers.kafka("SCRAM-SHA-512", password, &servers.authority));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let letters = ["dead-letters", "list", "--topic", &shop.topic("inventories")];
    let (code, _, said) = cartctl(&letters, PASSWORD);
    assert_eq!(code, Some(0), "{said}");
    let (code, _, said) = cartctl(&letters, WRONG);
    assert_eq!(code, Some(1));
    assert!(said.contains("uthentication failed") && said.contains("kafka_sasl_password") && !said.contains(WRONG), "{said}");
    shop.stop().await;
}

/// Waits until `/ready` has all these words. Neither `/ready` nor the log may contain a password.
async fn says(shop: &mut Shop, kind: Kind, words: &[&str]) {
    let url = format!("{}/ready", shop.url(kind));
    let last = eventually(&format!("{} says {words:?}", kind.name), || async {
        let last = reqwest::get(&url).await.ok()?.text().await.unwrap();
        words.iter().all(|word| last.contains(word)).then_some(last)
    })
    .await;
    let log = std::fs::read_to_string(shop.service(kind).process().log()).unwrap();
    for secret in [PASSWORD, WRONG] {
        assert!(!last.contains(secret) && !log.contains(secret), "{last}\n{log}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn authentication_failures_say_what_to_do() {
    let (servers, mut shop) = Servers::start("not-let-in").await;
    let role = COMMANDS.role;
    let port = servers.postgres.port();
    for (url, words) in [
        (servers.url(role, WRONG, &servers.authority), ["password authentication failed", "DATABASE_URL"]),
        (servers.url(role, PASSWORD, &servers.other), ["certificate", "sslrootcert in DATABASE_URL"]),
        (
            servers.url(role, PASSWORD, &servers.authority).replace("@127.0.0.1:", "@localhost:"),
            ["not valid for name", "the name in the server's certificate"],
        ),
        (format!("postgres://{role}:{PASSWORD}@127.0.0.1:{port}/cartlog?sslmode=disable"), ["no encryption", "sslmode=verify-full"]),
    ] {
        let settings = services::Settings { database_url: url, ..servers.settings(&shop, COMMANDS) };
        shop.launch(COMMANDS, settings);
        says(&mut shop, COMMANDS, &words).await;
    }
    for kind in [TRANSLATOR, PUBLISHER] {
        for (security, words) in [
            (servers.kafka("SCRAM-SHA-512", WRONG, &servers.authority).to_vec(), ["uthentication failed", "kafka_sasl_password"]),
            (servers.kafka("PLAIN", WRONG, &servers.authority).to_vec(), ["uthentication failed", "kafka_sasl_password"]),
            (servers.kafka("SCRAM-SHA-512", PASSWORD, &servers.other).to_vec(), ["certificate", "kafka_ssl_ca_location"]),
            (vec![("CARTLOG_KAFKA_SECURITY_PROTOCOL".to_owned(), "plaintext".to_owned())], ["the broker at", "kafka_security_protocol"]),
        ] {
            let mut settings = shop.settings(kind, &format!("{}.log", kind.name));
            settings.database_url = servers.url(kind.role, PASSWORD, &servers.authority);
            if kind == PUBLISHER {
                // The publisher needs its certificate for PostgreSQL. This case is about the broker.
                settings.database_url = servers.url(TRANSLATOR.role, PASSWORD, &servers.authority);
            }
            settings.kafka_bootstrap_servers = servers.secured.clone();
            settings.environment.extend(security);
            shop.launch(kind, settings);
            says(&mut shop, kind, &words).await;
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn unsafe_settings_are_refused_at_start() {
    let shop = Shop::new("unsafe").await;
    for (set, said) in [
        (
            &[("SASL_PASSWORD", PASSWORD)] as &[_],
            "kafka_sasl_password is *** (environment variable CARTLOG_KAFKA_SASL_PASSWORD), but it must be empty, unless",
        ),
        (&[("SASL_USERNAME", USER)], "kafka_sasl_username is \"cartlog\""),
        (&[("SECURITY_PROTOCOL", "sasl_ssl")], "kafka_sasl_username is empty (built-in default), but it must be set"),
        (&[("SECURITY_PROTOCOL", "SASL_SSL")], "but it must be one of `plaintext`, `ssl`, `sasl_plaintext`, `sasl_ssl`"),
        (
            &[("SECURITY_PROTOCOL", "sasl_ssl"), ("SASL_USERNAME", USER)],
            "kafka_sasl_password is empty (built-in default), but it must be set",
        ),
        (&[("SASL_MECHANISM", "GSSAPI")], "but it must be one of `SCRAM-SHA-512`, `SCRAM-SHA-256`, `PLAIN`"),
        (&[("SSL_CA_LOCATION", "/etc/passwd")], "but it must be empty, unless kafka_security_protocol is ssl or sasl_ssl"),
        (&[("SECURITY_PROTOCOL", "ssl"), ("SSL_CA_LOCATION", "/nowhere/ca.pem")], "but it must be the path of a file"),
        (&[("SECURITY_PROTOCOL", "ssl"), ("SSL_KEY_LOCATION", "/etc/passwd")], "kafka_ssl_certificate_location is empty"),
    ] {
        let settings = shop.settings(PUBLISHER, "publisher.log");
        let mut command = Command::new(&settings.program);
        command.envs(set.iter().map(|(name, value)| (format!("CARTLOG_KAFKA_{name}"), *value)));
        let ended = command.output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{set:?}: {stderr}");
        assert!(stderr.contains(said) && !stderr.contains(PASSWORD), "{set:?}: {stderr}");
    }
}
