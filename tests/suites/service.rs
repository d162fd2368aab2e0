//! A directory service, as a team would have one. It answers each question from the content of a
//! directory file, until a test sets another answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use futures_util::StreamExt;
use presence_tests::client::Client;
use presence_tests::wait;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The beginning of its subjects, by default.
pub(crate) const SUBJECT: &str = "presence-directory";

/// A service that runs for as long as this is held.
pub(crate) struct Service {
    client: Client,
    /// The beginning of its subjects.
    root: String,
    state: Arc<Mutex<State>>,
    answers: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    directory: Value,
    /// The answers that replace those from the directory, by question.
    overrides: BTreeMap<String, Value>,
    asked: Vec<Asked>,
}

/// A question that the service was asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    /// The subject, without its beginning.
    pub(crate) subject: String,
    pub(crate) body: Value,
}

impl Service {
    /// Starts a service that answers from this directory.
    pub(crate) async fn start(url: &str, directory: Value) -> Result<Self> {
        let service = Self::of(Client::connect(url).await?, directory).await?;
        service.client.round_trip().await?;
        Ok(service)
    }

    /// As [`Self::start`], for the tenant with this prefix.
    pub(crate) async fn start_for(url: &str, prefix: &str, directory: Value) -> Result<Self> {
        let client = Client::connect(url).await?;
        let service = Self::under(client, format!("{prefix}.{SUBJECT}"), directory).await?;
        service.client.round_trip().await?;
        Ok(service)
    }

    /// As [`Self::start`], with a client that exists.
    pub(crate) async fn of(client: Client, directory: Value) -> Result<Self> {
        Self::under(client, SUBJECT.into(), directory).await
    }

    async fn under(client: Client, root: String, directory: Value) -> Result<Self> {
        let mut questions = client.nats.subscribe(format!("{root}.>")).await?;
        let state = Arc::new(Mutex::new(State {
            directory,
            ..State::default()
        }));
        let answers = watch::Sender::new(true);
        let (nats, shared, gate) = (client.nats.clone(), Arc::clone(&state), answers.subscribe());
        let own = root.clone();
        let task = tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                // The test's own invalidations come here, too.
                let Some(reply) = question.reply else {
                    continue;
                };
                let body: Value = serde_json::from_slice(&question.payload).unwrap_or_default();
                let subject = question.subject.strip_prefix(&*own).unwrap_or_default();
                locked(&shared).asked.push(Asked {
                    subject: subject.into(),
                    body: body.clone(),
                });
                let (nats, shared, mut gate) = (nats.clone(), Arc::clone(&shared), gate.clone());
                tokio::spawn(async move {
                    if gate.wait_for(|is_open| *is_open).await.is_ok() {
                        let answer = locked(&shared).answer(&body);
                        let _ = nats.publish(reply, answer.to_string().into()).await;
                    }
                });
            }
        });
        Ok(Self {
            client,
            root,
            state,
            answers,
            task,
        })
    }

    /// Sets whether it answers. If not, it only notes the questions.
    pub(crate) fn set_answering(&self, answers: bool) {
        self.answers.send_replace(answers);
    }

    /// Sets the directory from which it answers.
    pub(crate) fn set_directory(&self, directory: Value) {
        locked(&self.state).directory = directory;
    }

    /// Sets the answer to a kind of question. `None`: it answers from the directory again.
    pub(crate) fn set_answer(&self, question: &str, answer: Option<Value>) {
        let overrides = &mut locked(&self.state).overrides;
        match answer {
            Some(answer) => drop(overrides.insert(question.into(), answer)),
            None => drop(overrides.remove(question)),
        }
    }

    /// Publishes that an answer has changed. With an empty question: all have.
    pub(crate) async fn invalidate(&self, question: &str) -> Result<()> {
        let subject = format!("{}.invalidate", self.root);
        self.client.publish_bytes(&subject, question).await
    }

    /// All that it has been asked.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        locked(&self.state).asked.clone()
    }

    /// Waits until it has been asked this many questions.
    pub(crate) async fn until_asked(&self, count: usize) -> Result<Vec<Asked>> {
        let what = format!("the service to be asked {count} questions");
        wait::until(&what, async || {
            let asked = self.asked();
            Ok((asked.len() >= count).then_some(asked))
        })
        .await
    }

    /// Ends it. When this returns, the broker knows that nobody is there.
    pub(crate) async fn stop(self) -> Result<()> {
        self.task.abort();
        let _ = self.task.await;
        wait::until("nobody to answer", async || {
            let question = self
                .client
                .nats
                .request(format!("{}.gone", self.root), "".into());
            Ok(question.await.is_err().then_some(()))
        })
        .await
    }
}

impl State {
    fn answer(&self, body: &Value) -> Value {
        let question = body["question"].as_str().unwrap_or_default();
        if let Some(answer) = self.overrides.get(question) {
            return answer.clone();
        }
        let id = body["id"].as_str().unwrap_or_default();
        let listed = |section: &str, id: &str| {
            let list = self.directory[section][id].clone();
            if list.is_null() { json!([]) } else { list }
        };
        match question {
            "contacts" => listed("contacts", id),
            "members" => listed("groups", id),
            "blocked-by" => listed("blocks", id),
            "blockers" => json!(self.keys_of("blocks", |list| has(list, id))),
            "with-contact" => json!(self.keys_of("contacts", |list| has(list, id))),
            "groups" => json!(self.keys_of("groups", |list| has(list, id))),
            "co-members" => {
                let groups = self.keys_of("groups", |list| has(list, id));
                let members = groups.iter().map(|group| listed("groups", group));
                let members = members.filter_map(|list| list.as_array().cloned());
                json!(members.flatten().collect::<Vec<_>>())
            }
            "settings" => match &self.directory["settings"][id] {
                Value::Null => json!({}),
                settings => settings.clone(),
            },
            "with-setting" => {
                let key = body["key"].as_str().unwrap_or_default();
                json!(self.keys_of("settings", |settings| settings[key] == body["value"]))
            }
            _ => {
                let everyone = ["contacts", "settings"].map(|it| self.keys_of(it, |_| true));
                json!(everyone.into_iter().flatten().collect::<BTreeSet<_>>())
            }
        }
    }

    /// The keys in a section whose values fulfil a condition.
    fn keys_of(&self, section: &str, is_one: impl Fn(&Value) -> bool) -> Vec<String> {
        let section = self.directory[section].as_object();
        let entries = section.into_iter().flat_map(Map::iter);
        let found = entries.filter(|(_, value)| is_one(value));
        found.map(|(key, _)| key.clone()).collect()
    }
}

fn has(list: &Value, id: &str) -> bool {
    list.as_array()
        .is_some_and(|list| list.iter().any(|it| it == id))
}

fn locked(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
