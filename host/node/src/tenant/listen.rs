//! A tenant's subscriptions for inputs and questions.

use std::sync::Arc;

use presence_config::Queues;
use tokio::sync::{Semaphore, watch};

use super::Tenant;
use super::ask::{Budget, QueryService, QuestionCounts};
use super::intake::{DropCounter, Intake};
use super::router::{self, Router};
use crate::fleet::Fleet;
use crate::fleet::deferred_tasks::DeferredTasks;
use crate::fleet::parts::{Inputs, PartInputs, PartReceiver};
use crate::link::broker::BrokerHealth;
use crate::link::connection::Connection;
use crate::link::drops::SubscriptionKind;
use crate::link::watermark::Watermark;

impl Tenant {
    /// Subscribes to the tenant's inputs. `parts`: the channel that reports which shards a fleet's
    /// node owns or follows.
    pub(crate) async fn listen(
        &self,
        connection: &Connection,
        broker: Arc<BrokerHealth>,
        received_up_to: watch::Receiver<u64>,
        intake_queue: usize,
        parts: Option<PartReceiver>,
    ) -> anyhow::Result<Intake> {
        let (changes, tasks) = parts.map(|it| (it.changes, it.deferred)).unzip();
        let messages = match changes {
            None => {
                // There is one subscription, so that messages are in order across all subjects.
                let subject = self.subjects.of("presence.>");
                let messages = connection.subscribe(subject, SubscriptionKind::Inputs, &broker);
                Inputs::Alone(messages.await?)
            }
            Some(changes) => {
                broker.drops.read_by_several();
                let of_stream = self.input_stream.is_some();
                let routed = router::listen(connection, &self.subjects, &broker, of_stream);
                let routed = routed.await?;
                Inputs::Parts(PartInputs::new(routed, changes))
            }
        };
        let router = self.fleet.as_ref().map(|fleet| self.router(fleet));
        Ok(Intake {
            messages,
            router,
            stream: None,
            has_stream: self.input_stream.is_some(),
            subjects: self.subjects.clone(),
            replies: Arc::clone(&self.replies),
            body_bytes_max: Arc::clone(&self.body_bytes_max),
            metadata: self.metadata.subscribe(),
            messages_rate: self.quotas.messages.clone(),
            share: Arc::clone(&self.share),
            shards: self.shards.clone(),
            broker,
            connection: connection.clone(),
            drops: DropCounter::default(),
            tracer: self.tracer.clone(),
            deferred: DeferredTasks::new(tasks, intake_queue),
            watermark: Watermark::new(received_up_to, intake_queue, self.shards.iter().len()),
        })
    }

    /// The router that passes inputs on to their shards.
    pub(super) fn router(&self, fleet: &Arc<Fleet>) -> Router {
        let stream = self.input_stream.as_ref().map(|it| it.name.clone());
        let (subjects, messages) = (self.subjects.clone(), self.quotas.messages.clone());
        Router::new(Arc::clone(fleet), subjects, messages, stream)
    }

    /// The service that answers questions of the tenant's users.
    pub(crate) fn query_service(
        &self,
        connection: &Connection,
        broker: Arc<BrokerHealth>,
        counts: Arc<QuestionCounts>,
        queues: &Queues,
    ) -> QueryService {
        QueryService {
            connection: connection.clone(),
            subjects: self.subjects.clone(),
            replies: Arc::clone(&self.replies),
            shards: self.shards.clone(),
            fleet: self.fleet.clone(),
            body_bytes_max: Arc::clone(&self.body_bytes_max),
            broker,
            directory: self.known_directory.subscribe(),
            answers_are_fetched: self.fetcher.is_some(),
            explains: Arc::clone(&self.explains),
            counts,
            queries: self.quotas.queries.clone(),
            exceeded: Arc::clone(&self.exceeded),
            turn: Semaphore::new(1),
            budget: Budget::new(queues.question_queue, queues.question_bytes_max),
        }
    }
}
