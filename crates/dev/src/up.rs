//! `cargo dev up`, `down` and `reset`: the stack in the terminal or in the background.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use crate::settings::Settings;
use crate::stack::Stack;
use crate::state::{self, State, Up, UpServer};
use crate::table;
use embedded::error::{Context, Error};
use embedded::files;
use embedded::identity::Identity;
use embedded::layout::Layout;
use embedded::orphans;
use embedded::postgres;
use embedded::process::POLL;
use embedded::report::Report;
use embedded::signals::Signals;

/// Starts the stack, and stops it after a signal or when a process of it ends. If the stack is up already, prints its addresses.
///
/// # Errors
/// The stack does not start, or a process ended.
pub async fn foreground(layout: &Layout, release: bool, report: &Report) -> Result<(), Error> {
    let Some(lock) = state::supervise(layout)? else {
        return already_up(layout, report).await;
    };
    supervise(layout, release, report, lock, |up| {
        embedded::report::answer(table::of(up));
        report.say("all is ready; Ctrl-C stops it");
    })
    .await
}

/// Runs the stack in the background process that [`background`] starts.
///
/// # Errors
/// As [`foreground`].
pub async fn in_background(layout: &Layout, release: bool, report: &Report) -> Result<(), Error> {
    // In its own session the process survives the terminal. The call fails only if the process has a session already.
    let _ = nix::unistd::setsid();
    match state::supervise(layout)? {
        Some(lock) => supervise(layout, release, report, lock, |_| ()).await,
        None => Err(Error::Refused("another `cargo dev up` started first".to_owned())),
    }
}

/// Starts the stack in the background, shows its progress, and returns when everything is ready.
///
/// # Errors
/// The stack does not start. The reason is on the screen.
pub async fn background(layout: &Layout, release: bool, report: &Report) -> Result<Up, Error> {
    // If several commands start at once, one starts the stack and the others find it.
    let _starting = state::alone_in_starting(layout).await?;
    if let Some(state) = State::read(layout)? {
        return until_ready(layout, &state.supervisor, report).await;
    }
    let log = layout.stack().join("logs/supervisor.log");
    let output = files::open_log(&log)?;
    let errors = output.try_clone().context(|| format!("open {} twice", log.display()))?;
    let program = std::env::current_exe().context(|| "find the path of this program".to_owned())?;
    let mut signals = Signals::listen()?;
    let mut supervisor = Command::new(program)
        .arg("supervise")
        .args(release.then_some("--release"))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .context(|| "start the supervisor".to_owned())?;
    let mut progress = File::open(&log).context(|| format!("open {}", log.display()))?;
    tokio::select! {
        started = follow(layout, &mut supervisor, &mut progress) => started,
        () = signals.next() => {
            if let Some(identity) = supervisor.id().and_then(Identity::of) {
                identity.signal(Signal::SIGTERM)?;
                supervisor.wait().await.context(|| "wait for the supervisor".to_owned())?;
            }
            show(&mut progress);
            Err(Error::Interrupted)
        }
    }
}

/// Shows the supervisor's messages until it is ready or has ended.
async fn follow(layout: &Layout, supervisor: &mut Child, progress: &mut File) -> Result<Up, Error> {
    loop {
        let ended = supervisor.try_wait().context(|| "look after the supervisor".to_owned())?;
        show(progress);
        if ended.is_some() {
            return Err(Error::Refused("the stack did not start; the reason is above".to_owned()));
        }
        let own = supervisor.id();
        let state = State::read(layout)?.filter(|state| Some(state.supervisor.pid) == own);
        if let Some(up) = state.and_then(|state| state.up) {
            return Ok(up);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn show(progress: &mut File) {
    let mut news = Vec::new();
    if progress.read_to_end(&mut news).is_ok() {
        let _ = std::io::stderr().write_all(&news);
    }
}

async fn supervise(layout: &Layout, release: bool, report: &Report, lock: File, ready: impl FnOnce(&Up)) -> Result<(), Error> {
    let settings = Settings::from_environment()?;
    orphans::end(&layout.stack().join("logs"), report).await?;
    settings.check_ports()?;
    let Some(supervisor) = Identity::of(std::process::id()) else {
        return Err(Error::Missing("the operating system does not tell when this process started".to_owned()));
    };
    let mut state = State { supervisor, up: None };
    state.write(layout)?;

    let mut signals = Signals::listen()?;
    let mut stack = Stack::new(layout.clone(), settings, *report);
    let ran = tokio::select! {
        ran = run(layout, &mut stack, release, &mut state, ready) => ran,
        () = signals.next() => Err(Error::Interrupted),
    };
    // When everything was ready, a signal is the normal end.
    let ran = ran.or_else(|error| match error {
        Error::Interrupted if state.up.is_some() => Ok(()),
        error => Err(error),
    });
    match &ran {
        Ok(()) => {}
        Err(Error::Interrupted) => report.say("interrupted"),
        Err(error) => report.say(format!("error: {}", embedded::error::chain(error))),
    }
    let stopped = tokio::select! {
        stopped = stack.stop() => stopped,
        () = signals.next() => {
            report.say("killing the processes that still run");
            stack.kill().await
        }
    };
    State::remove(layout)?;
    drop(lock);
    stopped?;
    report.say("all is stopped");
    ran.map_err(|error| match error {
        Error::Interrupted => error,
        _ => Error::Refused("the stack is down; the reason is above".to_owned()),
    })
}

/// Returns only with an error.
async fn run(layout: &Layout, stack: &mut Stack, release: bool, state: &mut State, ready: impl FnOnce(&Up)) -> Result<(), Error> {
    let up = stack.start(release).await?;
    ready(&up);
    state.up = Some(up);
    state.write(layout)?;
    Err(stack.failure().await)
}

async fn already_up(layout: &Layout, report: &Report) -> Result<(), Error> {
    // The process with the lock writes the state file soon, or ends.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while tokio::time::Instant::now() < deadline {
        if let Some(state) = State::read(layout)? {
            let up = until_ready(layout, &state.supervisor, report).await?;
            embedded::report::answer(table::of(&up));
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Error::Refused("another `cargo dev up` is starting or stopping: try again in a moment".to_owned()))
}

/// Waits until another process's stack is ready.
async fn until_ready(layout: &Layout, supervisor: &Identity, report: &Report) -> Result<Up, Error> {
    let mut said = false;
    loop {
        match State::read(layout)? {
            Some(State { up: Some(up), .. }) => {
                report.say(if said { "the stack is up" } else { "the stack is up already; other settings apply after `cargo dev down`" });
                return Ok(up);
            }
            Some(state) if state.supervisor == *supervisor => {
                if !said {
                    report.say(format!("process {} is starting the stack; waiting for it", supervisor.pid));
                    said = true;
                }
                tokio::time::sleep(POLL).await;
            }
            _ => return Err(Error::Refused(format!("process {}, which was starting the stack, ended", supervisor.pid))),
        }
    }
}

/// Stops a supervisor and everything that it started. The supervisor reports on its own screen or log.
///
/// # Errors
/// The operating system refuses.
pub async fn down(layout: &Layout, report: &Report) -> Result<(), Error> {
    // The services' own deadline, then Kafka's and PostgreSQL's.
    const DEADLINE: Duration = Duration::from_secs(90);
    let state = State::read(layout)?;
    if let Some(State { supervisor, .. }) = &state {
        report.say(format!("stopping the stack (process {})", supervisor.pid));
        supervisor.signal(Signal::SIGTERM)?;
        if !orphans::gone(supervisor, DEADLINE).await {
            report.say("the supervisor does not stop; killing it");
            supervisor.signal(Signal::SIGKILL)?;
            orphans::gone(supervisor, DEADLINE).await;
        }
    }
    orphans::end(&layout.stack().join("logs"), report).await?;
    State::remove(layout)?;
    report.say(if state.is_some() { "the stack is down" } else { "the stack was not up" });
    Ok(())
}

/// Stops the stack and deletes its database and topics. The servers' programs stay.
///
/// # Errors
/// The stack uses a server that it did not start, or the operating system refuses.
pub async fn reset(layout: &Layout, settings: &Settings, report: &Report) -> Result<(), Error> {
    let up = State::read(layout)?.and_then(|state| state.up);
    let uses = |server: fn(&Up) -> &UpServer| up.as_ref().is_some_and(|up| server(up).log.is_none());
    let mut strangers = Vec::new();
    if settings.database_url.is_some() || uses(|up| &up.database) {
        strangers.push("DATABASE_URL");
    }
    if settings.kafka_bootstrap_servers.is_some() || uses(|up| &up.kafka) {
        strangers.push("KAFKA_BOOTSTRAP_SERVERS");
    }
    if !strangers.is_empty() {
        // The log and the topics belong together: with one of them empty they would contradict each other.
        return Err(Error::Refused(format!(
            "nothing was deleted, because the stack uses a server that `cargo dev up` did not start ({}). Empty that server yourself, or run \
             `cargo dev down` and unset the variable.",
            strangers.join(" and ")
        )));
    }
    down(layout, report).await?;
    postgres::remove_data(layout, &layout.stack()).await?;
    files::remove(&layout.stack().join("kafka"))?;
    report.say("the database and the topics are deleted");
    Ok(())
}
