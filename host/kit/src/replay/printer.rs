//! Prints what a replay would publish, one message per line.

use std::io::Write;

use presence_config::subjects::{Source, Subjects};
use presence_core::Output;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::replayer::NODE;

#[derive(Serialize)]
struct Published<'a> {
    at: u64,
    subject: &'a str,
    headers: Map<String, Value>,
    data: &'a RawValue,
}

pub(super) struct Printer<W> {
    source: Option<Source>,
    subjects: Subjects,
    message_ids: bool,
    out: W,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(subjects: Subjects, message_ids: bool, out: W) -> Self {
        Self {
            source: None,
            subjects,
            message_ids,
            out,
        }
    }

    /// Sets the start of the source to the time of the first line. Later calls do nothing.
    pub(super) fn begin(&mut self, at: u64) {
        self.source
            .get_or_insert_with(|| Source::new(NODE, 0, at, &self.subjects, self.message_ids));
    }

    pub(super) fn print(&mut self, at: u64, outputs: Vec<Output>) -> anyhow::Result<()> {
        for output in outputs {
            let Some(source) = &self.source else { continue };
            let (subject, renewed, seq, body) = match output {
                Output::Publish(publication) => {
                    let subject = source.subject(publication.subject).to_owned();
                    (subject, 0, publication.seq, publication.body)
                }
                Output::Deliver(delivery) => {
                    let subject = source.inbox(delivery.viewer.as_str());
                    (subject, delivery.renewed, delivery.seq, delivery.body)
                }
                Output::Reply(..)
                | Output::Fetch(_)
                | Output::Ignored(_)
                | Output::PluginFailed(_)
                | Output::Refused(_) => {
                    continue;
                }
            };
            let headers = source.headers(&subject, renewed, seq);
            // JSON strings contain no line breaks; elsewhere a line break is just white space.
            let body = std::str::from_utf8(&body)?.replace(['\n', '\r'], " ");
            let data: &RawValue = serde_json::from_str(&body)?;
            let published = Published {
                at,
                subject: &subject,
                headers: headers
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect(),
                data,
            };
            serde_json::to_writer(&mut self.out, &published)?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}
