//! Debian's Rust, unpacked into a folder, with a standard library that is built for Wasm from its
//! sources.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, id};

use anyhow::{Context, Result, bail};

use super::{TARGET, Toolchain, one_line, run};

/// The toolchain that `unpack` has made.
pub(super) fn at(root: &Path) -> Toolchain {
    Toolchain {
        rustc: root.join("usr/bin/rustc").into(),
        libraries: Some(root.join(format!("usr/lib/{ARCH}-linux-gnu"))),
    }
}

/// Makes a toolchain at `root`, in about a minute. It is put together in another folder, and moved
/// to `root` when it is complete.
///
/// # Errors
/// When the packages can't be downloaded, or the standard library can't be built.
pub(super) fn unpack(root: &Path) -> Result<()> {
    let partial = root.with_extension(format!("partial-{}", id()));
    let result = assemble(&partial).and_then(|()| {
        match fs::rename(&partial, root) {
            // Another process may have been faster. Its toolchain is as good.
            Err(_) if root.exists() => Ok(()),
            moved => moved.with_context(|| format!("moving {} into place", partial.display())),
        }
    });
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    result
}

fn assemble(root: &Path) -> Result<()> {
    let packages = root.join("packages");
    fs::create_dir_all(&packages).with_context(|| format!("making {}", packages.display()))?;
    if let Err(stale) = download(&packages) {
        run(Command::new("apt-get").args(["-qq", "update"])).map_err(|update| {
            stale.context(format!(
                "apt-get update, which may help, failed too ({}): run it as root",
                one_line(&update)
            ))
        })?;
        download(&packages)?;
    }
    for package in fs::read_dir(&packages)? {
        run(Command::new("dpkg")
            .arg("-x")
            .arg(package?.path())
            .arg(root))?;
    }
    // rustc looks for the linker under this name.
    let bin = root.join(format!("usr/lib/rustlib/{ARCH}-unknown-linux-gnu/bin"));
    fs::create_dir_all(&bin)?;
    symlink(linker(root)?, bin.join("rust-lld"))?;

    build_std(root).context("building the standard library for Wasm")?;
    for spent in ["packages", "build", "usr/src", "usr/share"] {
        fs::remove_dir_all(root.join(spent)).with_context(|| format!("removing {spent}"))?;
    }
    Ok(())
}

/// Downloads the packages. apt knows which versions of Rust and LLVM belong together.
fn download(into: &Path) -> Result<()> {
    let std = dependency("rustc-web", "libstd-rust-web-")?;
    let llvm = dependency(&std, "libllvm")?;
    let lld = format!("lld-{}", llvm.trim_start_matches("libllvm"));
    let packages = [
        "rustc-web",
        &std,
        "libstd-rust-web-dev",
        "rust-web-src",
        &llvm,
        &lld,
    ];
    run(Command::new("apt-get")
        .arg("download")
        .args(packages)
        .current_dir(into))?;
    Ok(())
}

/// The package with a name that begins with `prefix`, among those that `package` depends on.
fn dependency(package: &str, prefix: &str) -> Result<String> {
    let depends = run(Command::new("apt-cache").args(["depends", "--important", package]))?;
    let named = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix));
    match named {
        Some(name) => Ok(name.to_owned()),
        None => bail!("apt knows no package {package} that depends on a {prefix}*"),
    }
}

/// LLVM's linker, as a path relative to the folder in which rustc looks.
fn linker(root: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(root.join("usr/bin"))? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("lld-") {
            return Ok(Path::new("../../../../bin").join(name));
        }
    }
    bail!("the lld package has no usr/bin/lld-*")
}

/// Builds the standard library into the toolchain's sysroot, where rustc finds it as if it had come
/// with the toolchain.
///
/// The library lies inside the workspace that depends on it. Cargo then hashes its path relative to
/// the workspace, so that the result doesn't depend on the folder.
fn build_std(root: &Path) -> Result<()> {
    fs::write(root.join("Cargo.toml"), ASKING_FOR_STD)?;
    fs::write(root.join("nothing.rs"), "#![no_std]\n")?;
    let build = root.join("build");
    let flags = format!(
        "-Cembed-bitcode=yes\x1f--remap-path-prefix={}=/rust",
        root.display()
    );
    run(at(root)
        .cargo()
        .args(["build", "--release", "--target", TARGET])
        .arg("-Zbuild-std=std,panic_abort")
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // This permits `-Zbuild-std` on a stable toolchain.
        .env("RUSTC_BOOTSTRAP", "1"))?;

    let library = root.join("usr/lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&library)?;
    for entry in fs::read_dir(build.join(TARGET).join("release/deps"))? {
        let entry = entry?;
        let name = entry.file_name();
        let file = name.to_string_lossy();
        if file.ends_with(".rlib") && !file.starts_with("libnothing-") {
            fs::copy(entry.path(), library.join(&name))?;
        }
    }
    Ok(())
}

const ASKING_FOR_STD: &str = r#"[package]
name = "nothing"
version = "0.0.0"
edition = "2024"

[lib]
path = "nothing.rs"

[workspace]
"#;
