//! The files of the page, which are compiled into the program.

/// A file of the page.
pub(super) struct Asset {
    /// Its name below `/page/`.
    pub(super) name: &'static str,
    /// Its media type.
    pub(super) kind: &'static str,
    pub(super) text: &'static str,
}

/// The page itself.
pub(super) const INDEX: &str = include_str!("../../../../page/index.html");

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($name:literal, $kind:expr) => {
        asset!($name, $kind, $name)
    };
    ($name:literal, $kind:expr, $path:literal) => {
        Asset {
            name: $name,
            kind: $kind,
            text: include_str!(concat!("../../../../page/", $path)),
        }
    };
}

/// Everything that the page loads.
pub(super) const ASSETS: [Asset; 19] = [
    asset!("beside.js", JS),
    asset!("dom.js", JS),
    asset!("explain.js", JS),
    asset!("format.js", JS),
    asset!("history.js", JS),
    asset!("icon.svg", "image/svg+xml"),
    asset!("letters.js", JS),
    asset!("main.js", JS),
    asset!("overview.js", JS),
    asset!("page.css", CSS),
    asset!("pipeline.js", JS),
    asset!("plots.js", JS),
    asset!("series.js", JS),
    asset!("stream.js", JS),
    asset!("tenant.js", JS),
    asset!("theme.js", JS),
    asset!("token.js", JS),
    asset!("uplot.css", CSS, "uplot/uPlot.min.css"),
    asset!("uplot.js", JS, "uplot/uPlot.esm.js"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_served_and_every_import_leads_to_one() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/page");
        let files = std::fs::read_dir(folder).unwrap();
        for file in files {
            let name = file.unwrap().file_name().into_string().unwrap();
            let is_other = ["README.md", "index.html", "uplot"].contains(&&*name);
            assert!(
                is_other || ASSETS.iter().any(|it| it.name == name),
                "{name}"
            );
        }
        let own = ASSETS.iter().filter(|it| !it.name.starts_with("uplot"));
        let texts = own.map(|it| it.text).chain([INDEX]);
        for link in texts.flat_map(|text| text.split('"')) {
            if let Some(name) = link.strip_prefix("/page/") {
                let is_asked = [
                    "beside", "canary", "events", "explain", "history", "rollback", "shadow",
                ]
                .contains(&name);
                assert!(
                    is_asked || ASSETS.iter().any(|it| it.name == name),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn the_page_has_no_script_or_style_of_its_own_and_makes_nothing_of_markup() {
        for (place, _) in INDEX.match_indices("<script") {
            let tag = INDEX[place..].split_once("</script>").unwrap().0;
            assert!(tag.ends_with("\">"), "an inline script: {tag}");
        }
        for inline in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
            assert!(!INDEX.contains(inline), "{inline}");
        }
        for asset in ASSETS
            .iter()
            .filter(|it| it.kind == JS && it.name != "uplot.js")
        {
            for danger in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!asset.text.contains(danger), "{}: {danger}", asset.name);
            }
        }
    }
}
