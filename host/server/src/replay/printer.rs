//! Prints what a replay would publish, a line each.

use std::io::Write;

use presence_core::Output;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::player::NODE;
use crate::wire::{Source, Subjects};

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
    out: W,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(subjects: Subjects, out: W) -> Self {
        Self {
            source: None,
            subjects,
            out,
        }
    }

    /// The first line came at this time, which is when the source started.
    pub(super) fn begin(&mut self, at: u64) {
        self.source
            .get_or_insert_with(|| Source::new(NODE, 0, at, &self.subjects));
    }

    pub(super) fn print(&mut self, at: u64, outputs: Vec<Output>) -> anyhow::Result<()> {
        for output in outputs {
            let Some(source) = &self.source else { continue };
            let (subject, headers, body) = match output {
                Output::Publish(publication) => {
                    let standing = source.standing_headers();
                    let standing = standing.map(|(name, value)| (name, value.to_owned()));
                    let own = source.own_headers(&publication);
                    let subject = source.subject(&publication).to_string();
                    let headers: Vec<_> = standing.into_iter().chain(own).collect();
                    (subject, headers, publication.body)
                }
                Output::Deliver(delivery) => {
                    let (subject, headers) = source.delivery(&delivery);
                    (subject, headers.into(), delivery.body)
                }
                Output::Reply(..) | Output::Fetch(_) | Output::Ignored(_) => continue,
            };
            let headers = headers.into_iter();
            let data: &RawValue = serde_json::from_slice(&body)?;
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
