//! Splits a list between machines, without communication.
//!
//! All images of one source repository are in one shard, so that its tags are listed once, and its blobs are read
//! once. The repository's name alone decides the shard: if the list grows or is reordered, other repositories stay in
//! theirs.

use std::fmt;
use std::str::FromStr;

use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;

/// One of several parts of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    index: u32,
    of: u32,
}

/// A shard as users write it: `3/8` is the third of eight; `/8` has no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSpec {
    /// From 1.
    number: Option<u32>,
    of: u32,
}

impl Shard {
    /// How many shards there are.
    pub fn count(self) -> u32 {
        self.of
    }

    /// Whether images of this source repository are in the shard.
    pub fn contains(&self, source: &Repository) -> bool {
        shard_index(source, self.of) == self.index
    }
}

impl ShardSpec {
    /// Resolves the number of the shard. `completion_index` is the index of an indexed Job's pod in Kubernetes
    /// (`JOB_COMPLETION_INDEX`, from 0). It is used only without a number.
    ///
    /// # Errors
    /// [`Kind::Usage`] without a number and an index, or if the index is too large.
    pub fn settle(self, completion_index: Option<&str>) -> Result<Shard> {
        let Self { number, of } = self;
        if let Some(number) = number {
            return Ok(Shard { index: number - 1, of });
        }
        let wrong = |what: String| {
            Error::new(Kind::Usage, what).hint(format!(
                "write --shard 1/{of} to {of}/{of}, or run it as a Kubernetes Job with completionMode: Indexed and completions: {of}"
            ))
        };
        let text = completion_index
            .ok_or_else(|| wrong(format!("--shard /{of} has no number, and JOB_COMPLETION_INDEX is not set")))?;
        match text.parse::<u32>() {
            Ok(index) if index < of => Ok(Shard { index, of }),
            _ => Err(wrong(format!("JOB_COMPLETION_INDEX is {text:?}, where {of} shards are numbered from 0"))),
        }
    }
}

impl FromStr for ShardSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(Kind::Usage, format!("{text:?} is not a shard: {why}"))
                .hint("write the number and how many there are, from 1: 3/8 is the third of eight")
        };
        let (number, of) = text.split_once('/').ok_or_else(|| wrong("it has no '/'"))?;
        let of = of.parse::<u32>().map_err(|_| wrong("the number of shards is not a number"))?;
        if of == 0 || of > MAX_SHARDS {
            return Err(wrong(&format!("there can be 1 to {MAX_SHARDS} shards")));
        }
        if number.is_empty() {
            return Ok(Self { number: None, of });
        }
        match number.parse::<u32>() {
            Ok(0) => Err(wrong("shards are numbered from 1")),
            Ok(number) if number > of => Err(wrong(&format!("there are only {of}"))),
            Ok(number) => Ok(Self { number: Some(number), of }),
            Err(_) => Err(wrong("its number isn't one")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

/// The shard of a repository, from 0, by SHA-256. Rust's own hashes differ between releases, and the machines of a
/// run may have different ones.
fn shard_index(source: &Repository, of: u32) -> u32 {
    let hash = match Digest::of(source.to_string().as_bytes()) {
        Digest::Sha256([a, b, c, d, e, f, g, h, ..]) => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        Digest::Sha512(_) => 0,
    };
    u32::try_from(hash % u64::from(of)).unwrap_or(0)
}

const MAX_SHARDS: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> Repository {
        format!("docker.io/{name}").parse().expect("a repository")
    }

    fn shard(text: &str) -> Shard {
        text.parse::<ShardSpec>().and_then(|asked| asked.settle(None)).expect("a shard")
    }

    #[test]
    fn shards_are_disjoint_and_together_the_whole() {
        let repositories: Vec<Repository> = (0..2000).map(|n| repository(&format!("org{}/app{n}", n % 7))).collect();
        for of in [1, 2, 3, 8, 50] {
            let shards: Vec<Shard> = (1..=of).map(|number| shard(&format!("{number}/{of}"))).collect();
            let mut sizes = vec![0; of];
            for repository in &repositories {
                let holders: Vec<usize> = (0..of).filter(|at| shards[*at].contains(repository)).collect();
                assert_eq!(holders.len(), 1, "{repository} of {of}");
                sizes[holders[0]] += 1;
            }
            let fair = repositories.len() / of;
            assert!(sizes.iter().all(|size| (fair / 2..=fair * 2).contains(size)), "{of}: {sizes:?}");
        }
    }

    /// A new release must not move repositories between shards. The numbers are those of `printf
    /// docker.io/library/nginx | sha256sum | cut -c -16`, modulo 8.
    #[test]
    fn repositories_stay_where_they_are() {
        let places = ["library/nginx", "library/redis", "library/postgres", "grafana/grafana", "prom/prometheus"]
            .map(|name| shard_index(&repository(name), 8) + 1);
        assert_eq!(places, GOLDEN);
    }

    #[test]
    fn wrong_shards_say_why() {
        for (text, why) in [
            ("0/8", "from 1"),
            ("9/8", "only 8"),
            ("3", "no '/'"),
            ("1/0", "1 to 10000"),
            ("/0", "1 to 10000"),
            ("x/8", "isn't one"),
            ("-1/8", "isn't one"),
            ("1/x", "is not a number"),
            ("1/2/3", "is not a number"),
            ("1/10001", "1 to 10000"),
        ] {
            let error = text.parse::<ShardSpec>().expect_err(text);
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert_eq!(shard("8/8").to_string(), "8/8");
    }

    #[test]
    fn kubernetes_counts_from_nought() {
        let asked: ShardSpec = "/8".parse().expect("shards");
        assert_eq!(asked.settle(Some("0")).expect("a shard"), shard("1/8"));
        assert_eq!(asked.settle(Some("7")).expect("a shard"), shard("8/8"));
        for (index, why) in [(None, "is not set"), (Some("8"), "from 0"), (Some("x"), "from 0")] {
            let error = asked.settle(index).expect_err("no such shard");
            assert!(error.to_string().contains(why), "{error}");
        }
        let numbered: ShardSpec = "2/8".parse().expect("a shard");
        assert_eq!(numbered.settle(Some("5")).expect("a shard"), shard("2/8"), "the user's word goes first");
    }

    const GOLDEN: [u32; 5] = [2, 8, 5, 5, 8];
}
