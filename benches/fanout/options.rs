//! The command line.

use std::net::SocketAddr;

use crate::{
    scenario::{Scenario, size::Size},
    support::{
        Result,
        target::{
            kind::{Kind, Naive, Pace},
            start::{BARE, NAIVE},
        },
    },
};

/// The job of this process.
#[derive(Debug)]
pub(crate) enum Command {
    /// Nothing: it was started as a test, or to be listed.
    Nothing,
    /// Run the reference server, which another process of this executable measures.
    Bare {
        /// Address of the upstream.
        upstream: SocketAddr,
        /// Whether it gathers pending events into one write.
        pace: Pace,
    },
    /// Run the naive server, which another process of this executable measures.
    Naive {
        /// Address of the upstream.
        upstream: SocketAddr,
        /// Protocols that it serves.
        naive: Naive,
    },
    /// Measure.
    Measure(Options),
}

/// The measurements to make.
#[derive(Debug)]
pub(crate) struct Options {
    /// The scenarios, in this order.
    pub(crate) scenarios: Vec<Scenario>,
    /// The targets, in the order of the first pair.
    pub(crate) kinds: Vec<Kind>,
    /// Number of runs of each.
    pub(crate) pairs: usize,
    /// Size of the scenarios.
    pub(crate) size: Size,
}

impl Command {
    /// Parses the arguments after the program's name. Cargo adds `--bench`, except when it runs
    /// tests.
    ///
    /// # Errors
    ///
    /// An invalid argument, with the usage.
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = arguments.peekable();
        if arguments.next_if(|first| first == BARE).is_some() {
            return Self::bare(arguments);
        }
        if arguments.next_if(|first| first == NAIVE).is_some() {
            let upstream = value(NAIVE, arguments.next())?;
            return Ok(Self::Naive { upstream, naive: value(NAIVE, arguments.next())? });
        }
        let mut is_bench = false;
        let mut options = Options {
            scenarios: Vec::new(),
            kinds: vec![Kind::Relay, Kind::Bare],
            pairs: 1,
            size: Size::Full,
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => is_bench = true,
                "--quick" => {
                    options.size = Size::Quick;
                    options.kinds = vec![Kind::Relay];
                }
                "--all" => options.kinds = Kind::ALL.to_vec(),
                "--pairs" => options.pairs = value(&argument, arguments.next())?,
                "--only" => options.kinds = list(&argument, arguments.next())?,
                // arguments of the test harness
                _ if !is_bench && argument.starts_with('-') => return Ok(Self::Nothing),
                name => options
                    .scenarios
                    .push(name.parse().map_err(|problem| format!("{problem}\n{USAGE}"))?),
            }
        }
        if options.scenarios.is_empty() {
            options.scenarios = Scenario::ALL.to_vec();
        }
        Ok(match is_bench {
            true => Self::Measure(options),
            false => Self::Nothing,
        })
    }

    fn bare(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        Ok(Self::Bare {
            upstream: value(BARE, arguments.next())?,
            pace: value(BARE, arguments.next())?,
        })
    }
}

fn value<T: std::str::FromStr>(name: &str, text: Option<String>) -> Result<T> {
    let text = text.ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
    text.parse().map_err(|_| format!("{name} cannot be {text:?}\n{USAGE}").into())
}

/// Parses one value or several, separated by commas.
fn list<T: std::str::FromStr>(name: &str, text: Option<String>) -> Result<Vec<T>> {
    let text = text.unwrap_or_default();
    text.split(',').map(|one| value(name, Some(one.to_owned()))).collect()
}

/// Printed after a parse error.
pub(crate) const USAGE: &str = "usage: cargo bench --bench fanout -- [--quick] [--pairs N] [--all | --only relay,durable,websocket,bare,naive,nchan,pushpin,centrifugo,h2,naive-h2,tls,naive-tls,tls-h2,naive-tls-h2] [A A5 B C Cu D L E U R S …]";
