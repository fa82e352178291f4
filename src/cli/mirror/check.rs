//! `transload mirror check`: what a list means, without any network; and the schema of lists.

use std::io::Read as _;

use super::super::global::Global;
use super::super::output;
use super::Where;
use crate::error::{Error, Kind, Result};
use crate::mirror::List;
use crate::mirror::list::Base;

/// Say what a list means, without any network: which images, where to, and what of the file isn't done
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The list: a file, or `-` for stdin
    #[arg(value_name = "FILE")]
    list: String,
    #[command(flatten)]
    to: Where,
}

/// Runs `check`.
pub(super) fn run(args: &CheckArgs, _global: &Global) -> Result<u8> {
    let (_list, _to) = open(&args.list, &args.to)?;
    output::print("");
    Ok(0)
}

/// Prints the schema.
pub(super) fn schema() -> Result<u8> {
    output::print("");
    Ok(0)
}

/// Reads and checks a list, `-` being stdin; and where its images go.
pub(super) fn open(file: &str, to: &Where) -> Result<(List, Vec<Base>)> {
    let (text, name) = text(file)?;
    parsed(&text, &name, to)
}

/// The same, of bytes that were read already.
pub(super) fn read(bytes: &[u8], name: &str, to: &Where) -> Result<(List, Vec<Base>)> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Error::new(Kind::Usage, format!("{name} is no text: it isn't UTF-8")))?;
    parsed(text, name, to)
}

fn parsed(text: &str, name: &str, to: &Where) -> Result<(List, Vec<Base>)> {
    let list = List::read_with(text, name, &to.defaults())?;
    let to = if to.to.is_empty() { list.to.clone() } else { to.to.clone() };
    list.check(&to, name)?;
    Ok((list, to))
}

fn text(file: &str) -> Result<(String, String)> {
    let name = if file == "-" { "stdin" } else { file };
    let mut text = String::new();
    let read =
        |source: &mut dyn std::io::Read, text: &mut String| source.take(List::MAX_BYTES + 1).read_to_string(text);
    let result = match file {
        "-" => read(&mut std::io::stdin().lock(), &mut text),
        _ => std::fs::File::open(file).and_then(|mut file| read(&mut file, &mut text)),
    };
    result.map_err(|error| Error::io(format!("read {name}"), &error))?;
    Ok((text, name.to_owned()))
}
