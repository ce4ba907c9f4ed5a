//! `rnx completions SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    exit::{Failure, code},
    flags::Flags,
    out::Out,
};

pub(crate) fn completions(shell: Shell, out: Out) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Flags::command(), "rnx", &mut script);
    out.data(&script)?;
    Ok(code::DONE)
}
