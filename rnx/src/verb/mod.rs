//! The commands, a file each, and what they share: which server is meant, a connection to it, and what several
//! failures come to.

pub(crate) mod cancel;
pub(crate) mod completions;
pub(crate) mod config_help;
pub(crate) mod cp;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod list;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod nodes;
pub(crate) mod page;
pub(crate) mod receive;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod shutdown;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod wait;

use rnx::{Client, Config, Line, Node};

use crate::{
    exit::{Failure, code},
    flags::Global,
    local::Local,
    names,
    out::Out,
};

/// One call of `rnx`.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) global: Global,
    pub(crate) out: Out,
}

impl Session {
    pub(crate) fn new(global: Global, out: Out) -> Self {
        Self { global, out }
    }

    /// The client file, with its warnings said.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let config = if self.global.local {
            Local::new().config()?
        } else {
            Config::load(self.global.config.as_deref())?
        };
        config
            .warnings
            .iter()
            .for_each(|warning| self.out.warn(&warning.to_string()));
        Ok(config)
    }

    /// A connection to the server that is meant.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        if self.global.local {
            return Ok(Local::new().connect(self.out).await?.1);
        }
        Ok(Client::connect(&self.node()?).await?)
    }

    /// A connection to it that is made anew when it is lost.
    pub(crate) async fn line(&self) -> Result<Line, Failure> {
        if self.global.local {
            let (node, client) = Local::new().connect(self.out).await?;
            return Ok(Line::new(node, client));
        }
        Ok(Line::connect(&self.node()?).await?)
    }

    /// The server that is meant, whose address may be a name.
    fn node(&self) -> Result<Node, Failure> {
        names::use_what_is_built_in();
        let config = self.config()?;
        Ok(config.node(self.global.node.as_deref())?.clone())
    }
}

/// The exit code of a command about several things, each of which is tried whatever becomes of the others: that of the
/// first that failed.
#[derive(Debug)]
pub(crate) struct FirstFailure(u8);

impl FirstFailure {
    pub(crate) const fn none() -> Self {
        Self(code::DONE)
    }

    /// Says what failed.
    pub(crate) fn note(&mut self, error: impl Into<Failure>, out: Out) {
        let failure = error.into();
        out.failure(&failure);
        if self.0 == code::DONE {
            self.0 = failure.code;
        }
    }

    pub(crate) const fn code(&self) -> u8 {
        self.0
    }
}
