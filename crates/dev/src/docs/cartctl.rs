//! cartctl's commands: from its own --help.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use embedded::error::{Context, Error};

use super::sources::{cell, sentence, unreadable};

pub(super) fn table(cartctl: &Path) -> Result<String, Error> {
    let mut table = String::from("| command | what it does |\n| --- | --- |\n");
    let general = help(cartctl, &[])?;
    let common = options(&general);
    for command in subcommands(&general) {
        add(&mut table, cartctl, &[command], &common)?;
    }
    Ok(table)
}

fn add(table: &mut String, cartctl: &Path, path: &[String], common: &[String]) -> Result<(), Error> {
    let help = help(cartctl, path)?;
    let below = subcommands(&help);
    if below.is_empty() {
        let about = help.lines().next().unwrap_or_default();
        let usage =
            help.lines().find_map(|line| line.strip_prefix("Usage: ")).ok_or_else(|| unreadable(cartctl, "its help has no usage"))?;
        // The usage already has the required options.
        let own = options(&help).into_iter().filter(|option| !common.contains(option) && !usage.contains(option.as_str()));
        let own = own.fold(String::new(), |all, option| all + " [" + &option + "]");
        let _ = writeln!(table, "| `{}` | {} |", cell(&usage.replace(" [OPTIONS]", &own)), cell(&sentence(about)));
    }
    for command in below {
        add(table, cartctl, &[path, &[command]].concat(), common)?;
    }
    Ok(())
}

fn help(cartctl: &Path, path: &[String]) -> Result<String, Error> {
    let output = Command::new(cartctl).args(path).arg("-h").env_clear().output().context(|| format!("run {}", cartctl.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines of a section, without their indentation.
fn section<'a>(help: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    help.split(&format!("\n{heading}:\n")).nth(1).unwrap_or_default().lines().take_while(|line| line.starts_with(' ')).map(str::trim_start)
}

fn subcommands(help: &str) -> Vec<String> {
    let names = section(help, "Commands").filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The long options, with the names of their values.
fn options(help: &str) -> Vec<String> {
    let long = section(help, "Options").filter_map(|line| line.find("--").map(|start| &line[start..]));
    long.map(|line| line.split("  ").next().unwrap_or_default().trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Does it\n\nUsage: x y [OPTIONS] <NAME>\n\nCommands:\n  list  Lists\n  help  Helps\n\nOptions:\n      --to <OFFSET>  Where to\n  -h, \
                        --help         Print help\n";

    #[test]
    fn commands_and_options_are_read_from_help() {
        assert_eq!(subcommands(HELP), ["list"]);
        assert_eq!(options(HELP), ["--to <OFFSET>", "--help"]);
    }
}
