//! `keevee completions`: what makes a shell complete keevee's commands and options.

use std::io;

use clap::Args;
use clap_complete::Shell;

use crate::failure::Failure;

/// Print a script that completes commands and options.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee completions bash > ~/.local/share/bash-completion/completions/keevee
  keevee completions zsh > ~/.zfunc/_keevee          with ~/.zfunc in fpath
  keevee completions fish > ~/.config/fish/completions/keevee.fish")]
pub(crate) struct Arguments {
    /// For which shell
    shell: Shell,
}

pub(crate) fn run(arguments: Arguments, mut command: clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "keevee", &mut script);
    io::Write::write_all(&mut io::stdout(), &script)?;
    Ok(())
}
