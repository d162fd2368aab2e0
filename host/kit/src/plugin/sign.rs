//! `presence plugin keygen`, `sign` and `verify`: signatures of plugins.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use presence_config::PublicKey;
use presence_config::escape::{line, print, print_json};
use presence_rules::{keys, signature};
use presence_sandbox::sha256;
use serde_json::json;

use crate::ConfigArg;

/// The arguments of `keygen`.
#[derive(clap::Args)]
pub struct KeygenArgs {
    /// The file for the private key, such as `team.key`.
    file: PathBuf,
}

/// The arguments of `sign`.
#[derive(clap::Args)]
pub struct SignArgs {
    /// The plugin: a .wasm file.
    file: PathBuf,
    /// The file of the private key.
    #[arg(long)]
    key: PathBuf,
    /// Where to write the signed plugin; in its place by default.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// The arguments of `verify`.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// The plugin: a .wasm file.
    file: PathBuf,
    /// A public key that is trusted, as `keygen` prints it; may be given several times. By
    /// default, those of the configuration.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Generates a key, writes its private half to a file, and prints its public half.
pub(super) fn keygen(args: &KeygenArgs) -> anyhow::Result<()> {
    let public = keys::generate(&args.file)?;
    print(format_args!(
        "{}: the private key, which only you can read: keep it secret, and a copy of it safe\n\
         The public key, for [plugins] in presence.toml:\n\n  trusted_keys = [\"{public}\"]\n",
        line(args.file.display())
    ))?;
    Ok(())
}

/// Signs a plugin.
pub(super) fn sign(args: &SignArgs) -> anyhow::Result<()> {
    let key = keys::private(&args.key)?;
    let plugin = super::read(&args.file)?;
    let place = || format!("can't sign {}", args.file.display());
    let signed = signature::sign(&plugin, &key).with_context(place)?;
    let output = args.output.as_ref().unwrap_or(&args.file);
    // If the path is a link, the file behind it is replaced, and not the link.
    let place = match fs::canonicalize(output) {
        Err(error) if output.is_symlink() => {
            let what = || format!("{} leads nowhere", output.display());
            return Err(error).with_context(what);
        }
        place => place.unwrap_or_else(|_| output.clone()),
    };
    super::write(&place, &signed)?;
    print(format_args!(
        "{}: signed with {}\n  sha256:{}\n",
        line(output.display()),
        keys::public(&key)?,
        sha256(&signed)
    ))?;
    Ok(())
}

/// Prints by which trusted keys a plugin is signed.
pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let trusted = match args.keys.is_empty() {
        true => configured(args)?,
        false => {
            let keys = args.keys.iter().map(|key| PublicKey::parse(key));
            keys.collect::<Result<_, _>>()?
        }
    };
    let plugin = super::read(&args.file)?;
    let place = || args.file.display().to_string();
    let by = signature::verify(&plugin, &trusted).with_context(place)?;
    if args.json {
        let by: Vec<_> = by.iter().map(ToString::to_string).collect();
        print_json(json!({"signedWith": by, "sha256": format!("sha256:{}", sha256(&plugin))}))?;
        return Ok(());
    }
    for key in by {
        print(format_args!("{}: signed with {key}\n", line(place())))?;
    }
    Ok(())
}

/// The trusted keys of the configuration.
fn configured(args: &VerifyArgs) -> anyhow::Result<Vec<PublicKey>> {
    let keys = args.config.load()?.plugins.trusted_keys;
    ensure!(
        !keys.is_empty(),
        "no key is trusted: give one with --key, or set [plugins] trusted_keys"
    );
    Ok(keys)
}
