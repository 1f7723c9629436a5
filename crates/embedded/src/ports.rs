//! Free ports, and the processes that use the others.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::{Context, Error};

/// Tells whether this port of 127.0.0.1 is free now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Finds different free ports on 127.0.0.1: the wanted ones if they are free, otherwise any.
///
/// # Errors
/// The operating system has no free port.
pub fn free<const N: usize>(wanted: [Option<u16>; N]) -> Result<[u16; N], Error> {
    // Each stays open until the last is found, because otherwise one could be found twice.
    let mut held = Vec::with_capacity(N);
    for port in wanted {
        let listener = port
            .and_then(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .or_else(quiet)
            .map_or_else(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), Ok)
            .context(|| "find a free port".to_owned())?;
        held.push(listener);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr().context(|| "find a free port".to_owned())?.port();
    }
    Ok(ports)
}

/// Finds a port below those that the operating system gives to outgoing connections: one of them could take the port before its server does.
fn quiet() -> Option<TcpListener> {
    let candidates = (0..100).map(|_| rand::random_range(15_000..32_000_u16));
    candidates.into_iter().find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
}

/// Names the process that listens on a port, as "name (process 123)", if that can be found.
#[cfg(target_os = "linux")]
#[must_use]
pub fn listener(port: u16) -> Option<String> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| {
            let found = table.lines().filter_map(|line| listening_inode(line, port));
            found.map(|inode| format!("socket:[{inode}]")).collect::<Vec<_>>()
        })
        .collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // We cannot see the open files of other users' processes.
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = open
            .flatten()
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()));
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// Names the process that listens on a port, as "name (process 123)", if that can be found.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn listener(port: u16) -> Option<String> {
    let selection = format!("-iTCP:{port}");
    let output = std::process::Command::new("lsof").args(["-nP", "-sTCP:LISTEN", "-Fpc", &selection]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let field = |mark: char| text.lines().find_map(|line| line.strip_prefix(mark));
    Some(format!("{} (process {})", field('c')?, field('p')?))
}

/// Returns the socket's inode if the line of /proc/net/tcp is of a socket that listens on `port`.
#[cfg(target_os = "linux")]
fn listening_inode(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == "0A";
    (listens && u16::from_str_radix(local, 16).is_ok_and(|found| found == port)).then(|| fields.get(9).copied())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_replaces_a_wanted_port_that_is_taken() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(!is_free(port));
        let [first, second] = free([Some(port), None]).unwrap();
        assert!(first != port && second != port && first != second);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn listener_names_the_process() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let found = listener(taken.local_addr().unwrap().port()).unwrap();
        assert!(found.contains(&format!("(process {})", std::process::id())), "{found}");
    }
}
