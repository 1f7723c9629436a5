//! A console over a log of its own, as a browser sees it.

use actix_web::{
    App,
    http::{StatusCode, header},
    test::{TestRequest, call_service, init_service, read_body},
    web::Data,
};
use cart_events::DomainEvent;
use event_store::{EventStore, StoreSettings};
use kafka::Brokers;
use operations::Operator;
use service::CancellationToken;
use test_support::TestLog;

use crate::{attention::Recent, pages, watched::Watched};

pub(crate) struct Console {
    pub(crate) log: TestLog<DomainEvent>,
    store: EventStore<DomainEvent>,
    watched: Watched,
}

impl Console {
    /// Starts it with the operator's role.
    pub(crate) async fn start() -> Self {
        let log = TestLog::create().await;
        let store = EventStore::new(log.database.options_as("cartlog_operator"), StoreSettings::default());
        store.ready().await.unwrap();
        Self { watched: Watched::new(store.clone()), log, store }
    }

    /// Counts all events.
    pub(crate) async fn count(&self) {
        while self.watched.step().await.unwrap() {}
    }

    async fn send(&self, request: TestRequest) -> (StatusCode, Option<String>, String) {
        let servers = std::env::var("CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS").unwrap_or_default();
        let app = App::new()
            .app_data(Data::new(self.store.clone()))
            .app_data(Data::new(self.watched.clone()))
            .app_data(Data::new(Operator::new(&Brokers::new(&servers, "console-test")).unwrap()))
            .app_data(Data::new(Recent::default()))
            .app_data(Data::new(CancellationToken::new()));
        let app = init_service(pages!(app, service)).await;
        let answer = call_service(&app, request.to_request()).await;
        let location = answer.headers().get(header::LOCATION).map(|location| location.to_str().unwrap().to_owned());
        let policy = answer.headers().get(header::CONTENT_SECURITY_POLICY).map(|policy| policy.to_str().unwrap().to_owned());
        assert!(policy.is_some_and(|policy| policy.starts_with("default-src 'none'; script-src 'self';")));
        let (status, body) = (answer.status(), read_body(answer).await);
        (status, location, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Reads a page.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let (status, _, page) = self.send(TestRequest::get().uri(path)).await;
        (status, page)
    }

    /// Reads a page that is there.
    pub(crate) async fn read(&self, path: &str) -> String {
        let (status, page) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {page}");
        page
    }

    /// Sends a form of the console. Returns where the browser goes next.
    pub(crate) async fn post(&self, path: &str, form: &[(&str, &str)]) -> String {
        let request = TestRequest::post().uri(path).insert_header(("sec-fetch-site", "same-origin")).set_form(form);
        let (status, location, page) = self.send(request).await;
        assert_eq!(status, 303, "{path}: {page}");
        location.unwrap()
    }

    /// Sends a form of the console. Returns the status.
    pub(crate) async fn send_form(&self, path: &str, form: &[(&str, &str)]) -> StatusCode {
        self.send(TestRequest::post().uri(path).insert_header(("sec-fetch-site", "same-origin")).set_form(form)).await.0
    }

    /// Sends a form of another site. Returns the status.
    pub(crate) async fn post_from_another_site(&self, path: &str, form: &[(&str, &str)]) -> StatusCode {
        self.send(TestRequest::post().uri(path).insert_header(("sec-fetch-site", "cross-site")).set_form(form)).await.0
    }
}
