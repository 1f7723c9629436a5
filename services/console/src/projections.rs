//! Projections: how far each is, who runs it, and what an operator can do with it.

use std::collections::BTreeMap;

use actix_web::{
    HttpResponse, get,
    middleware::from_fn,
    post,
    web::{Data, Form, Path},
};
use askama::Template;
use cart_events::DomainEvent;
use event_store::{EventStore, Position};
use operations::{Build, Replica, Switch, text};
use service::{ErrorCode, HttpError};

use crate::{
    confirm::{Confirm, Confirmed},
    model::grouped,
    page::{Frame, Page, framed, see},
    watched::Watched,
};

const LIST: &str = "/console/projections";

#[derive(Template)]
#[template(path = "projections.html")]
pub(crate) struct Projections {
    frame: Frame,
    head: String,
    projections: Vec<Projection>,
}

struct Projection {
    name: String,
    builds: Vec<Shown>,
    replicas: usize,
    /// The lags of the last minutes, as points of a line.
    chart: String,
    longest_lag: String,
    actions: Vec<Action>,
}

struct Shown {
    build: Build,
    position: String,
    lag_events: String,
    lag: String,
    rate: String,
    batch: String,
    percent: f64,
    /// How long a rebuild still takes.
    left: Option<String>,
    /// The segments of each replica.
    owners: Vec<(String, usize)>,
}

/// Answers the projections: a page.
#[utoipa::path(operation_id = "projections", tag = "internal", responses((status = 200, body = String, content_type = "text/html")))]
#[get("/console/projections", wrap = "from_fn(framed)")]
pub(crate) async fn list_route(log: Data<EventStore<DomainEvent>>, watched: Data<Watched>) -> Result<Page<Projections>, HttpError> {
    let (head, builds) = operations::builds(log.pool()).await?;
    let replicas = operations::replicas(log.pool()).await?;
    let mut by_name: BTreeMap<String, Vec<Build>> = BTreeMap::new();
    for build in builds {
        by_name.entry(build.name.clone()).or_default().push(build);
    }
    let projection = |(name, builds): (String, Vec<Build>)| {
        let lags = watched.lags(&name);
        Projection {
            replicas: replicas.iter().filter(|replica| replica.name == name).count(),
            chart: chart(&lags),
            longest_lag: text::span(lags.iter().copied().fold(0.0, f64::max)),
            actions: Action::ALL.into_iter().filter(|action| action.refusal(&name, &builds, &replicas).is_none()).collect(),
            builds: builds.into_iter().map(|build| shown(build, head)).collect(),
            name,
        }
    };
    Ok(Page(Projections {
        frame: Frame::live("Projections", "Projections"),
        head: grouped(head.0),
        projections: by_name.into_iter().map(projection).collect(),
    }))
}

fn shown(build: Build, head: Position) -> Shown {
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for segment in &build.segments {
        let owner = segment.replica.map_or("nobody".to_owned(), |replica| replica.simple().to_string().split_off(26));
        *owners.entry(owner).or_default() += 1;
    }
    let left = (build.status == "building" && build.events_per_second > 0.0)
        .then(|| text::span(build.lag_events as f64 / build.events_per_second));
    Shown {
        position: grouped(build.position.0),
        lag_events: grouped(build.lag_events),
        lag: text::span(build.lag_seconds),
        rate: format!("{:.0}", build.events_per_second),
        batch: format!("{:.0}", build.batch),
        percent: (build.progress(head) * 100.0).floor(),
        left,
        owners: owners.into_iter().collect(),
        build,
    }
}

/// The points of a line, 100 wide and 30 high, that is as high as its greatest value, and as a lag of 1 s at least.
fn chart(lags: &[f64]) -> String {
    let most = lags.iter().copied().fold(1.0, f64::max);
    let step = 100.0 / (lags.len().max(2) - 1) as f64;
    let point = |(number, lag): (usize, &f64)| format!("{:.1},{:.1}", number as f64 * step, 29.0 - lag / most * 28.0);
    lags.iter().enumerate().map(point).collect::<Vec<_>>().join(" ")
}

/// What can be done with a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Pause,
    Resume,
    Rebuild,
    RebuildAndHold,
    Switch,
    SwitchBack,
    Drop,
}

impl Action {
    const ALL: [Self; 7] = [Self::Pause, Self::Resume, Self::Rebuild, Self::RebuildAndHold, Self::Switch, Self::SwitchBack, Self::Drop];

    /// Its name in a path.
    fn path(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Rebuild => "rebuild",
            Self::RebuildAndHold => "rebuild-and-hold",
            Self::Switch => "switch",
            Self::SwitchBack => "switch-back",
            Self::Drop => "drop",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Rebuild => "Rebuild",
            Self::RebuildAndHold => "Rebuild and hold",
            Self::Switch => "Switch",
            Self::SwitchBack => "Switch back",
            Self::Drop => "Drop",
        }
    }

    /// Why it cannot be done now.
    fn refusal(self, name: &str, builds: &[Build], replicas: &[Replica]) -> Option<String> {
        let of = || builds.iter().filter(|build| build.name == name);
        let Some(serving) = of().find(|build| build.status == "serving") else { return Some(format!("no build of {name} serves")) };
        let other = of().find(|build| build.status != "serving");
        let is_building = other.is_some_and(|other| other.status == "building");
        let unless = |possible: bool, reason: &str| (!possible).then(|| format!("{name} {reason}"));
        match self {
            Self::Pause => unless(!serving.paused, "is paused already"),
            Self::Resume => unless(serving.paused, "is not paused"),
            Self::Rebuild | Self::RebuildAndHold => unless(!serving.is_automation(), "is an automation: use `cartctl projections rebuild`")
                .or_else(|| unless(!serving.paused, "is paused, so the new build would be paused too"))
                .or_else(|| unless(operations::running_rebuild(builds, serving, replicas).is_none(), "is being rebuilt already")),
            Self::Switch => unless(is_building, "has no new build").or_else(|| {
                unless(other.is_some_and(|other| !other.switch_when_ready), "switches by itself as soon as the new build has caught up")
            }),
            Self::SwitchBack => operations::way_back(builds, replicas, name).err().map(|reason| reason.to_string()),
            Self::Drop => unless(other.is_some(), "has one build, which serves"),
        }
    }

    /// What will happen.
    fn consequences(self, name: &str, builds: &[Build]) -> Vec<String> {
        let other = builds.iter().find(|build| build.name == name && build.status != "serving");
        let emptied = other.map(|other| {
            format!("The {} build ({}, version {}) is emptied. You cannot switch back to it.", other.status, other.build, other.version)
        });
        let rebuilt = format!("A new build of {name} is filled from the log. The serving build answers meanwhile.");
        match self {
            Self::Pause => vec![format!(
                "{name} applies nothing until it is resumed. Its replicas stop after the batch in progress. An automation attempts no to-do."
            )],
            Self::Resume => vec![format!("{name} continues where it stopped.")],
            Self::Rebuild => [Some(rebuilt), Some("The new build serves as soon as it has caught up.".to_owned()), emptied]
                .into_iter()
                .flatten()
                .collect(),
            Self::RebuildAndHold => {
                [Some(rebuilt), Some("It does not serve before you switch.".to_owned()), emptied].into_iter().flatten().collect()
            }
            Self::Switch => {
                vec![format!("The new build of {name} serves as soon as it has caught up. The old one is kept, and you can switch back.")]
            }
            Self::SwitchBack => vec![format!("The retired build of {name} catches up, and then serves again.")],
            Self::Drop => emptied.into_iter().chain([format!("The serving build of {name} stays as it is.")]).collect(),
        }
    }
}

fn find(name: &str) -> Result<Action, HttpError> {
    let found = Action::ALL.into_iter().find(|action| action.path() == name);
    found.ok_or_else(|| HttpError::new(ErrorCode::UnknownRoute, format!("nothing can be done that is called {name}")))
}

fn refused(reason: String) -> HttpError {
    HttpError::refusal(actix_web::http::StatusCode::CONFLICT, "not_now", reason)
}

/// Asks before something is done with a projection: a page.
#[utoipa::path(operation_id = "ask_projection", tag = "internal", params(("name" = String, Path), ("action" = String, Path)), responses((status = 200, body = String, content_type = "text/html"), (status = 409, description = "not_now", body = service::ErrorBody)))]
#[get("/console/projections/{name}/{action}", wrap = "from_fn(framed)")]
pub(crate) async fn ask_route(path: Path<(String, String)>, log: Data<EventStore<DomainEvent>>) -> Result<Page<Confirm>, HttpError> {
    let (name, action) = path.into_inner();
    let action = find(&action)?;
    let (_, builds) = operations::builds(log.pool()).await?;
    let replicas = operations::replicas(log.pool()).await?;
    if let Some(reason) = action.refusal(&name, &builds, &replicas) {
        return Err(refused(reason));
    }
    Ok(Page(Confirm {
        frame: Frame::still("Projections", format!("{} {name}", action.title())),
        consequences: action.consequences(&name, &builds),
        items: vec![],
        path: format!("{LIST}/{name}/{}", action.path()),
        back: LIST,
    }))
}

/// Does something with a projection, and leads back to the projections.
#[utoipa::path(operation_id = "change_projection", tag = "internal", params(("name" = String, Path), ("action" = String, Path)), responses((status = 303, description = "To the projections."), (status = 403, description = "cross_site", body = service::ErrorBody), (status = 409, description = "not_now", body = service::ErrorBody)))]
#[post("/console/projections/{name}/{action}", wrap = "from_fn(framed)")]
pub(crate) async fn change_route(
    path: Path<(String, String)>,
    form: Form<Vec<(String, String)>>,
    log: Data<EventStore<DomainEvent>>,
) -> Result<HttpResponse, HttpError> {
    let (name, action) = path.into_inner();
    let (action, confirmed) = (find(&action)?, Confirmed::read(form.into_inner())?);
    let pool = log.pool();
    let (_, builds) = operations::builds(pool).await?;
    let replicas = operations::replicas(pool).await?;
    if let Some(reason) = action.refusal(&name, &builds, &replicas) {
        return Err(refused(reason));
    }
    let changed = match action {
        Action::Pause => operations::pause(pool, &name, true).await?,
        Action::Resume => operations::pause(pool, &name, false).await?,
        Action::Rebuild => operations::rebuild_named(pool, &name, Switch::WhenReady).await.map(|()| true)?,
        Action::RebuildAndHold => operations::rebuild_named(pool, &name, Switch::WhenAsked).await.map(|()| true)?,
        Action::Switch => operations::switch_when_ready(pool, &name).await?,
        Action::SwitchBack => operations::revive(pool, &name, Switch::WhenReady).await?,
        Action::Drop => match builds.iter().find(|build| build.name == name && build.status != "serving") {
            Some(other) => operations::drop_build(pool, &name, &other.build).await?,
            None => false,
        },
    };
    if !changed {
        return Err(refused(format!("{name} has changed meanwhile, so nothing was done")));
    }
    confirmed.record(action.path(), &name);
    Ok(see(LIST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Console;

    /// A read model and an automation, as their processes register them.
    const REGISTERED: &str = "INSERT INTO projection (name, build, version, status, tables) VALUES
             ('inventories', 'projection_a', 1, 'serving', '{inventories}'), ('publish_cart', 'automation', 1, 'serving', '{}');
         INSERT INTO checkpoint (name, build, segment, position) SELECT name, build, segment, 0 FROM projection, generate_series(0, 7) AS segment;";

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn projection_is_paused_rebuilt_switched_and_dropped() {
        let console = Console::start().await;
        sqlx::raw_sql(REGISTERED).execute(console.log.store.pool()).await.unwrap();
        let state = async || -> Vec<(String, String, bool, bool)> {
            let sql = "SELECT build, status, paused, switch_when_ready FROM projection WHERE name = 'inventories' ORDER BY build";
            sqlx::query_as(sql).fetch_all(console.log.store.pool()).await.unwrap()
        };
        let row = |build: &str, status: &str, paused, switch| (build.to_owned(), status.to_owned(), paused, switch);
        let form = [("by", "Ada"), ("reason", "a test")];
        let change = async |action: &str| {
            let path = format!("/console/projections/inventories/{action}");
            let page = console.read(&path).await;
            assert!(page.contains("name=\"reason\"") && page.contains("method=\"post\""), "{action}: {page}");
            assert_eq!(console.post(&path, &form).await, "/console/projections");
        };
        change("pause").await;
        assert!(state().await[0].2);
        assert!(console.read("/console/projections").await.contains("paused"));
        for refused in ["pause", "rebuild", "switch", "switch-back", "drop"] {
            assert_eq!(console.get(&format!("/console/projections/inventories/{refused}")).await.0, 409, "{refused}");
        }
        change("resume").await;
        change("rebuild-and-hold").await;
        assert_eq!(state().await[1], row("projection_b", "building", false, false));
        change("switch").await;
        assert_eq!(state().await[1], row("projection_b", "building", false, true));
        change("drop").await;
        assert_eq!(state().await.len(), 1);
        assert_eq!(console.get("/console/projections/publish_cart/rebuild").await.0, 409);
        assert_eq!(console.get("/console/projections/inventories/explode").await.0, 404);
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn change_of_another_site_or_without_a_reason_is_refused() {
        let console = Console::start().await;
        sqlx::raw_sql(REGISTERED).execute(console.log.store.pool()).await.unwrap();
        let path = "/console/projections/inventories/pause";
        let form = [("by", "Mallory"), ("reason", "because")];
        assert_eq!(console.post_from_another_site(path, &form).await, 403);
        assert_eq!(console.send_form(path, &[("by", "Ada"), ("reason", " ")]).await, 400);
        assert_eq!(console.send_form(path, &[("reason", "because")]).await, 400);
        let paused: bool = sqlx::query_scalar("SELECT bool_or(paused) FROM projection").fetch_one(console.log.store.pool()).await.unwrap();
        assert!(!paused);
    }

    #[test]
    fn chart_is_as_high_as_its_greatest_lag() {
        assert_eq!(chart(&[]), "");
        assert_eq!(chart(&[0.0, 4.0, 2.0]), "0.0,29.0 50.0,1.0 100.0,15.0");
        assert_eq!(chart(&[0.5]), "0.0,15.0");
    }
}
