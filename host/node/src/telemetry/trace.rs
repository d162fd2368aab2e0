//! A trace of one message: when it arrived, when its shard handled it, which stages were called for
//! it, and when the results were handed to the broker's client.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Instant, SystemTime};

use presence_core::message::Kind;
use presence_sandbox::StageCall;

use super::parent::Parent;
use super::{Figures, Order};

/// Makes traces of a tenant's messages. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Tracer {
    sample: f64,
    tenant: Option<Arc<str>>,
    orders: SyncSender<Order>,
    figures: Arc<Figures>,
}

/// The trace of a message that has arrived, and hasn't been handled.
#[derive(Debug)]
pub(crate) struct OpenTrace {
    pub(super) trace: [u8; 16],
    pub(super) parent: Option<[u8; 8]>,
    pub(super) subject: String,
    pub(super) arrived: Instant,
    /// The same time by the machine's clock.
    pub(super) arrived_at: SystemTime,
}

/// The trace of a message that its shard has handled.
#[derive(Debug)]
pub(crate) struct HandledTrace {
    pub(crate) begun: OpenTrace,
    pub(crate) shard: u32,
    /// The generation of the pipeline that decides about the message's user.
    pub(crate) generation: u64,
    /// When the shard began and ended to handle the message.
    pub(crate) from: Instant,
    pub(crate) until: Instant,
    /// How many messages the shard publishes because of it.
    pub(crate) published: usize,
    pub(crate) calls: Vec<StageCall>,
}

/// A complete trace.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(super) handled: HandledTrace,
    pub(super) tenant: Option<Arc<str>>,
    /// When the published messages were handed to the broker's client.
    pub(super) ended: Instant,
}

impl Tracer {
    pub(super) fn new(sample: f64, orders: &SyncSender<Order>, figures: &Arc<Figures>) -> Self {
        Self {
            sample,
            tenant: None,
            orders: orders.clone(),
            figures: Arc::clone(figures),
        }
    }

    pub(super) fn of_tenant(&self, tenant: Option<&str>) -> Self {
        Self {
            tenant: tenant.map(Into::into),
            ..self.clone()
        }
    }

    /// Begins the trace of a message, if it is traced. The sender's header decides, if there is
    /// one. A heartbeat, which usually has no effect, is traced only because of such a header.
    pub(crate) fn begin(
        &self,
        kind: Kind,
        subject: &str,
        traceparent: Option<&str>,
    ) -> Option<OpenTrace> {
        let parent = traceparent.and_then(Parent::parse);
        let is_traced = match &parent {
            Some(parent) => parent.is_sampled,
            None => kind != Kind::Heartbeat && fastrand::f64() < self.sample,
        };
        is_traced.then(|| OpenTrace {
            trace: match &parent {
                Some(parent) => parent.trace,
                None => fastrand::u128(1..).to_be_bytes(),
            },
            parent: parent.map(|parent| parent.span),
            subject: subject.to_owned(),
            arrived: Instant::now(),
            arrived_at: SystemTime::now(),
        })
    }

    /// Ends a trace: the results have been handed to the broker's client.
    pub(crate) fn end(&self, handled: HandledTrace) {
        let trace = Box::new(Trace {
            handled,
            tenant: self.tenant.clone(),
            ended: Instant::now(),
        });
        if self.orders.try_send(Order::Trace(trace)).is_err() {
            Figures::add(&self.figures.traces_dropped, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::sync::mpsc::sync_channel;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_sender_decides_and_else_chance() {
        let (orders, _taken) = sync_channel(1);
        let tracer = |sample| Tracer::new(sample, &orders, &Arc::default());
        let [all, none] = [tracer(1.0), tracer(1e-300)];
        let subject = "presence.connect";
        let begun = none.begin(Kind::Connect, subject, Some(PARENT)).unwrap();
        assert_eq!(begun.parent.unwrap()[0], 0xb7);
        assert_eq!(begun.trace[0], 0x0a);
        let unsampled = PARENT.replace("-01", "-00");
        assert!(
            all.begin(Kind::Connect, subject, Some(&unsampled))
                .is_none()
        );
        assert!(none.begin(Kind::Connect, subject, None).is_none());
        let own = all.begin(Kind::Connect, subject, Some("wrong")).unwrap();
        assert_eq!(own.parent, None);
        assert_ne!(own.trace, begun.trace);
        assert!(all.begin(Kind::Heartbeat, subject, None).is_none());
        assert!(all.begin(Kind::Heartbeat, subject, Some(PARENT)).is_some());
    }

    #[test]
    fn a_trace_without_room_is_dropped_and_counted() {
        let (orders, _taken) = sync_channel(1);
        let figures = Arc::<Figures>::default();
        let tracer = Tracer::new(1.0, &orders, &figures);
        for _ in 0..3 {
            let begun = tracer.begin(Kind::Connect, "presence.connect", None);
            tracer.end(HandledTrace {
                begun: begun.unwrap(),
                shard: 0,
                generation: 1,
                from: Instant::now(),
                until: Instant::now(),
                published: 0,
                calls: Vec::new(),
            });
        }
        assert_eq!(figures.traces_dropped.load(Ordering::Relaxed), 2);
    }
}
