//! `transload completions` and `transload man`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::output;
use crate::error::{Error, Result};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell
    shell: Shell,
}

/// Print the manual page (roff), of transload or of one command
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Command
    command: Option<String>,
}

/// Runs `completions`.
pub(super) fn completions(args: &CompletionsArgs) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "transload", &mut text);
    output::print_exact(&String::from_utf8_lossy(&text));
    Ok(0)
}

/// Runs `man`.
pub(super) fn man(args: &ManArgs) -> Result<u8> {
    let mut all = super::Cli::command();
    all.build();
    let command = match &args.command {
        None => all,
        Some(name) => all.find_subcommand(name).cloned().ok_or_else(|| {
            Error::new(crate::error::Kind::Usage, format!("there is no command {name:?}"))
                .hint("transload --help lists them")
        })?,
    };
    let mut text = Vec::new();
    // A command has no version of its own.
    let page = clap_mangen::Man::new(command).source(concat!("transload ", env!("CARGO_PKG_VERSION")));
    page.render(&mut text).map_err(|error| Error::io("write the manual", &error))?;
    output::print_exact(&String::from_utf8_lossy(&text));
    Ok(0)
}
