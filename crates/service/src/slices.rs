//! The slices of a service, each registered once.

use std::fmt;

use actix_web::{App, dev::HttpServiceFactory};
use event_store::LogEvent;
use projections::{Projection, Projections, Settings};
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};
use utoipa_actix_web::{AppExt, OpenApiFactory};

use crate::{
    fault::Fault,
    http::{
        common::{self, Routes},
        contract,
    },
    service::Service,
};

/// A description of a service: a name, its default settings, and its slices over a log of `E`.
pub struct Program<E> {
    /// The name of the binary, in telemetry too.
    pub name: &'static str,
    /// One sentence for `--help` and the OpenAPI document.
    pub about: &'static str,
    /// The service's settings with their defaults, in TOML.
    pub defaults: &'static str,
    /// Registers every slice. It is called once in each HTTP worker.
    pub slices: fn(&mut Slices<'_, '_, E>),
}

/// A projection by its name, and how to start it in the background of a service.
type ReadModel<E> = (&'static str, StartProjection<E>);
type StartProjection<E> = Box<dyn FnOnce(Service, &Projections<E>, &Settings, &[&str]) -> Service>;

/// Takes the slices of a service: a line for each.
pub struct Slices<'app, 'config, E> {
    app: &'app mut Routes<'config>,
    projections: Vec<ReadModel<E>>,
}

impl<E: LogEvent> Slices<'_, '_, E> {
    /// Adds a route: it is served, and it is in the OpenAPI document.
    pub fn route<R>(&mut self, route: R) -> &mut Self
    where
        R: HttpServiceFactory + OpenApiFactory + 'static,
    {
        self.app.service(route);
        self
    }

    /// Adds a read model: its projection runs in the background, and `/ready` waits until it works. [`Program::run_read_models`]
    /// starts it. A service that does not call it does not start.
    pub fn read_model<P: Projection<Log = E>>(&mut self, projection: P) -> &mut Self {
        let start: StartProjection<E> = Box::new(|service, projections, settings, rebuild| {
            let rebuild = rebuild.contains(&P::NAME);
            service.projection(projections, settings, projection, rebuild)
        });
        self.projections.push((P::NAME, start));
        self
    }
}

impl<E: LogEvent> Program<E> {
    /// The OpenAPI document: every route of the slices, and those that every service has.
    #[must_use]
    pub fn document(&self) -> OpenApi {
        self.collect().0
    }

    /// Runs the projections of all read models in the background. Those named in `rebuild` are rebuilt first.
    pub fn run_read_models(&self, service: Service, projections: &Projections<E>, settings: &Settings, rebuild: &[&str]) -> Service {
        let start = |service, (_, start): ReadModel<E>| start(service, projections, settings, rebuild);
        self.collect().1.into_iter().fold(service, start)
    }

    pub(crate) async fn serve(&'static self, service: Service) -> Result<(), Fault> {
        let (document, read_models) = self.collect();
        // Its queries would answer that they wait for its first start, for ever.
        for (name, _) in read_models {
            anyhow::ensure!(service.has_background(name), "the read model {name} does not run; start it with Program::run_read_models");
        }
        service.serve(document, |app| drop(self.configure(app))).await
    }

    fn configure(&self, app: &mut Routes<'_>) -> Vec<ReadModel<E>> {
        let mut slices = Slices { app, projections: vec![] };
        (self.slices)(&mut slices);
        slices.projections
    }

    /// Registers the slices with an application that is not served.
    fn collect(&self) -> (OpenApi, Vec<ReadModel<E>>) {
        let mut projections = vec![];
        let license = LicenseBuilder::new().name(env!("CARGO_PKG_LICENSE")).identifier(Some(env!("CARGO_PKG_LICENSE"))).build();
        let info = InfoBuilder::new().title(self.name).description(Some(self.about)).version(env!("CARGO_PKG_VERSION"));
        let document = OpenApiBuilder::new().info(info.license(Some(license)).build()).build();
        let app = App::new().into_utoipa_app().openapi(document).configure(|app| projections = self.configure(app));
        let mut document = app.configure(common::routes).split_for_parts().1;
        let port = self.defaults.lines().find_map(|line| line.strip_prefix("port = ")).unwrap_or_default();
        contract::complete(&mut document, port);
        (document, projections)
    }
}

impl<E> fmt::Debug for Program<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use disintegrate::Event;
    use event_store::Recorded;
    use serde::{Deserialize, Serialize};
    use sqlx::PgConnection;
    use uuid::Uuid;

    use super::*;
    use crate::{
        CancellationToken,
        settings::{Common, Layers},
        telemetry::Metrics,
    };

    #[derive(Debug, Clone, PartialEq, Eq, Event, Serialize, Deserialize)]
    #[stream(LoanStream, [BookLent])]
    enum LibraryEvent {
        BookLent {
            #[id]
            member_id: Uuid,
        },
    }

    struct Loans;

    #[async_trait]
    impl Projection for Loans {
        type Log = LibraryEvent;
        type Event = LoanStream;
        const NAME: &'static str = "loans";
        const TABLES: &'static [&'static str] = &["loans"];
        const KEYED_BY: Option<&'static str> = Some("member_id");

        fn key(LoanStream::BookLent { member_id }: &LoanStream) -> Option<Uuid> {
            Some(*member_id)
        }

        async fn apply(&self, _: &mut PgConnection, _: &[Recorded<LoanStream>]) -> Result<(), sqlx::Error> {
            Ok(())
        }
    }

    static LIBRARY: Program<LibraryEvent> = Program {
        name: "library",
        about: "",
        defaults: "",
        slices: |slices| {
            slices.read_model(Loans);
        },
    };

    #[tokio::test]
    async fn read_model_that_does_not_run_is_refused_at_start() {
        const DEFAULTS: &str = "port = 1\ndatabase_url = 'postgres://a@127.0.0.1:1/b'\ncommand_timeout_milliseconds = 10000";
        let settings: Common = Layers::load(&[DEFAULTS], None, |_| None).unwrap().read().unwrap();
        let service = Service::new("library", settings, Metrics::detached(), CancellationToken::new());
        let refused = LIBRARY.serve(service).await.unwrap_err().to_string();
        assert_eq!(refused, "the read model loans does not run; start it with Program::run_read_models");
    }
}
