//! `presence explain`: why a viewer can or can't see a user, for operators who are asked that.

use std::fmt::Write as _;

use presence_kit::explained::{flag, reasons, what_it_does, word};
use presence_kit::text::{plain, time};
use presence_node::link::request_client::ClientRequest;
use serde_json::{Value, json};

use crate::ask::RequestArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Who looks.
    viewer: String,
    /// At whom.
    user: String,
    #[command(flatten)]
    common: RequestArgs,
}

/// Asks, and prints the answer.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let question = question(&args.viewer, &args.user);
    crate::ask::ask_and_print(&args.common, &question, describe)
}

/// The explanation as a text.
fn describe(answer: &Value) -> String {
    let viewer = word(answer, "/viewerId");
    let user = word(answer, "/userId");
    let mut text = headline(answer, &viewer, &user);
    let at = answer.pointer("/event/timestamp").and_then(Value::as_u64);
    let at = time(at.unwrap_or_default());
    let basis = match (
        &*word(answer, "/event/basis"),
        &*word(answer, "/event/type"),
    ) {
        ("hypothetical", _) => format!(
            "Nothing is known about {user}. The rules were run as if {user} came online now."
        ),
        (_, "user_offline") => {
            format!("{user} is offline, since {at}. The rules were run on that departure.")
        }
        _ => format!("{user} is online, since {at}."),
    };
    let _ = writeln!(
        text,
        "{basis}\n\nPipeline, generation {}:",
        word(answer, "/generation")
    );
    let stages = answer.pointer("/stages").and_then(Value::as_array);
    for (number, stage) in stages.into_iter().flatten().enumerate() {
        push_stage(&mut text, number + 1, stage, &user, &viewer);
    }
    let _ = writeln!(text, "\n{}", outcome(answer, &viewer, &user));
    text
}

fn headline(answer: &Value, viewer: &str, user: &str) -> String {
    let sees = flag(answer, "/outcome/maySee");
    let short = match &*word(answer, "/outcome/standing") {
        "pending" => "not decided",
        "correcting" if sees => "yes, and will be told shortly",
        "correcting" => "no, and will be told shortly",
        _ if sees => "yes",
        _ => "no",
    };
    match &*word(answer, "/event/type") {
        "user_offline" => format!("May {viewer} see when {user} was last seen? {short}.\n\n"),
        _ => format!("May {viewer} see {user}? {short}.\n\n"),
    }
}

fn push_stage(text: &mut String, number: usize, stage: &Value, user: &str, viewer: &str) {
    let _ = writeln!(text, "  {number}. {}", what_it_does(stage, viewer));
    for reason in reasons(stage, user, viewer) {
        let _ = writeln!(text, "       {reason}");
    }
}

/// The question.
pub(crate) fn question(viewer: &str, user: &str) -> ClientRequest {
    ClientRequest {
        subject: "presence.explain".into(),
        inbox: None,
        body: json!({"viewerId": viewer, "userId": user}),
        is_answer: |answer| answer.get("stages").is_some_and(Value::is_array),
    }
}

/// The text that says that the decision is pending. `None` if it isn't. `presence query` prints the
/// same.
pub(crate) fn pending(answer: &Value) -> Option<String> {
    if word(answer, "/outcome/standing") != "pending" {
        return None;
    }
    let [viewer, user] = ["/viewerId", "/userId"].map(|place| word(answer, place));
    let retry = answer.pointer("/outcome/retryAt").and_then(Value::as_u64);
    let retry = retry.map_or_else(String::new, |at| format!(", at {}", time(at)));
    Some(format!(
        "The decision who may see {user} is pending: nobody new is told until it has been \
         repeated{retry}. Until then a query by {viewer} shows {user} as offline."
    ))
}

fn outcome(answer: &Value, viewer: &str, user: &str) -> String {
    let told = flag(answer, "/outcome/told");
    let is_offline = word(answer, "/event/type") == "user_offline";
    let belief = if is_offline {
        String::new()
    } else if told {
        format!("{viewer} has been told that {user} is online.")
    } else {
        format!("{viewer} has not been told that {user} is online.")
    };
    let why = answer.pointer("/outcome/why").map(plain);
    let why = match why {
        Some(why) if flag(answer, "/outcome/kept") => {
            format!("The rules can't be run now, and what was decided before stands. Why: {why}.")
        }
        Some(why) => format!("Why: {why}."),
        None => String::new(),
    };
    let shown = answer.pointer("/outcome/rendition").map(|rendition| {
        let keys = rendition.pointer("/keys").and_then(Value::as_array);
        let keys: Vec<_> = keys.into_iter().flatten().map(plain).collect();
        let keys = if keys.is_empty() {
            "no metadata".into()
        } else {
            keys.join(", ")
        };
        let know = if flag(rendition, "/lastSeen") {
            "may know"
        } else {
            "may not know"
        };
        if is_offline {
            return format!("{viewer} {know} when {user} was last seen.");
        }
        format!("{viewer} may get {keys}, and {know} when {user} was last seen.")
    });
    let state = match &*word(answer, "/outcome/standing") {
        "pending" => pending(answer).unwrap_or_default(),
        "correcting" if told => format!("{viewer} will shortly be told that {user} is offline."),
        "correcting" => format!("{viewer} will shortly be told."),
        _ => String::new(),
    };
    let shown = shown.unwrap_or_default();
    let sentences = [belief, state, shown, why];
    let said: Vec<_> = sentences.into_iter().filter(|it| !it.is_empty()).collect();
    said.join(" ")
}
