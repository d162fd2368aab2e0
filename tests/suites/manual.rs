//! Help at a terminal: completions and manual pages.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use presence_tests::{host, tools};

#[test]
fn bash_completes_commands_and_options() -> Result<()> {
    let completed = |words: &str, last: usize| -> Result<String> {
        let script = format!(
            "eval \"$('{}' completions bash)\"; COMP_WORDS=({words}); COMP_CWORD={last}; \
             _presence presence \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{last}-1]}}\"; \
             echo \"${{COMPREPLY[*]}}\"",
            host::binary()?.display()
        );
        tools::run(Command::new("bash").args(["-c", &script]))
    };
    assert_eq!(completed("presence exp", 1)?.trim(), "explain");
    assert_eq!(completed("presence dlq red", 2)?.trim(), "redrive");
    let options = completed("presence check --", 2)?;
    for option in ["--connect", "--json", "--config"] {
        ensure!(
            options.split_whitespace().any(|it| it == option),
            "{options}"
        );
    }
    Ok(())
}

#[test]
fn the_manual_has_a_page_for_every_command_and_man_shows_it() -> Result<()> {
    let around = tempfile::tempdir()?;
    let folder = around.path().join("man1");
    let said = tools::run(Command::new(host::binary()?).arg("man").arg(&folder))?;
    let pages: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
    ensure!(
        said.starts_with(&format!("{} manual pages", pages.len())),
        "{said}"
    );
    // Not everyone has `man`, and a page is text that `troff` sets.
    let Some(man) = tools::on_path("man") else {
        return Ok(());
    };
    for page in pages {
        let path = page.path();
        let mut man = Command::new(&man);
        man.args(["--warnings", "--local-file"]).arg(&path);
        man.env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8");
        let output = man.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", path.display());
        ensure!(text.contains("SYNOPSIS"), "{}: {text}", path.display());
    }
    Ok(())
}
