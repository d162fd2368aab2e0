//! Tests of panics: a panic in a shard restarts this shard alone, and any other panic ends the
//! node.

use std::io::{self, Write};
use std::sync::Mutex;

use presence_core::directory::Question;

use super::super::work::PanicPoint;
use super::*;

/// The address of the first shard of the first tenant.
const FIRST: Address = Address {
    tenant: 0,
    shard: 0,
};

#[test]
fn a_shard_that_panics_begins_anew_under_a_later_epoch_and_all_others_go_on() {
    let mut node = Node::new(1 << 20, 1);
    let tenant = node.tenant(2);
    node.work();
    for handle in &tenant.handles {
        offer(handle, connects(0, 3, None));
    }
    node.work();
    node.mailbox.put_first(FIRST, Task::Panic(PanicPoint::Turn));
    offer(&tenant.handles[0], connects(3, 1, None));
    offer(&tenant.handles[1], connects(3, 1, None));
    node.work();
    assert_eq!(node.broker.on(ONLINE).last().unwrap(), "t0/1 1 4");
    let figures = &tenant.handles[0].figures;
    assert_eq!(figures.restarts.load(Ordering::Relaxed), 1);
    // Inputs that came meanwhile have waited. Earlier data is gone, because nothing is stored.
    node.until(|node| node.broker.on(ONLINE).len() == 8);
    let last = node.broker.on(ONLINE).pop().unwrap();
    let [source, epoch, seq] = *last.split(' ').collect::<Vec<_>>() else {
        panic!("{last}");
    };
    assert_eq!((source, seq), ("t0/0", "1"));
    assert!(epoch.parse::<u64>().unwrap() > 1_000);
    assert_eq!(figures.online_users.load(Ordering::Relaxed), 1);
    assert_eq!(figures.restarts.load(Ordering::Relaxed), 1);
}

/// The log, with the spans of each line.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_thread_logs_of_a_shard_names_its_tenant() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut node = Node::new(1 << 20, 1);
        let common = TenantContext {
            span: Some(tracing::info_span!("tenant", name = "acme")),
            ..TenantContext::default()
        };
        node.tenant_with(1, Arc::default(), common, || None);
        node.work();
        node.mailbox.put_first(FIRST, Task::Panic(PanicPoint::Turn));
        node.work();
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let mut lines = text.lines().filter(|it| it.contains("a shard has failed"));
    let line = lines.next().unwrap();
    assert!(line.contains("tenant{name=\"acme\"}: "), "{line}");
}

#[test]
fn a_shard_that_panics_knows_again_what_was_stored_of_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _writes = runtime.enter();
    let mut node = Node::new(1 << 20, 1);
    let folder = tempfile::tempdir().unwrap();
    let names = Arc::<Names>::default();
    let state = Writer::in_folder(folder.path(), &names);
    let tenant = node.kept_tenant(1, names, &state);
    node.work();
    let [handle] = &*tenant.handles else {
        panic!("it has one shard");
    };
    offer(handle, connects(0, 3, None));
    node.until(|node| {
        node.acknowledge();
        state.figures.records.load(Ordering::Relaxed) >= 6
    });
    node.mailbox.put_first(FIRST, Task::Panic(PanicPoint::Turn));
    node.work();
    let online = || handle.figures.online_users.load(Ordering::Relaxed);
    assert_eq!(
        (handle.figures.restarts.load(Ordering::Relaxed), online()),
        (1, 0)
    );
    node.until(|_| online() == 3);
    // Users who were online before the failure are not announced again.
    offer(handle, connects(0, 4, None));
    node.until(|node| node.broker.on(ONLINE).len() > 3);
    let headers = node.broker.on(ONLINE);
    assert_eq!(headers.len(), 4);
    assert!(
        headers[3].ends_with(" 1"),
        "the first of a later epoch: {headers:?}"
    );
    assert_eq!(online(), 4);
}

#[test]
fn a_panic_anywhere_in_a_shards_work_restarts_that_shard_alone() {
    for step in [
        PanicPoint::Turn,
        PanicPoint::Figures,
        PanicPoint::Save,
        PanicPoint::Beacon,
    ] {
        let settings = OutboxSettings {
            bytes_max: 1 << 20,
            shard_bytes_max: None,
            beacon_ms: 1,
        };
        let mut node = Node::with(settings, 1);
        let tenant = node.tenant(2);
        node.work();
        node.mailbox.put_first(FIRST, Task::Begin);
        node.mailbox.put_first(FIRST, Task::Panic(step));
        let restarts = |shard: usize| {
            let figures = &tenant.handles[shard].figures;
            figures.restarts.load(Ordering::Relaxed)
        };
        node.until(|_| restarts(0) == 1);
        offer(&tenant.handles[0], connects(0, 1, None));
        offer(&tenant.handles[1], connects(0, 1, None));
        node.until(|node| node.broker.on(ONLINE).len() == 2);
        assert_eq!((restarts(0), restarts(1)), (1, 0), "{step:?}");
    }
}

#[tokio::test]
async fn a_shard_that_begins_anew_does_its_control_tasks_and_leaves_no_question_unanswered() {
    let mut node = Node::new(1 << 20, 1);
    let tenant = node.tenant(1);
    let [handle] = &*tenant.handles else {
        panic!("it has one shard");
    };
    node.work();
    let ask = || {
        let (answer, answered) = oneshot::channel();
        assert!(handle.ask(ShardQuestion::Contacts("ann".into(), answer)));
        answered
    };
    node.mailbox
        .put_first(FIRST, Task::Panic(PanicPoint::Question));
    let asked = ask();
    node.work();
    assert!(asked.await.is_err(), "the shard failed at it");
    // The stored state isn't read before the delay is over, so the shard stays in its restart.
    let asked = ask();
    let (used, uses) = oneshot::channel();
    let question = Question::Contacts(Names::new().intern("ann"));
    handle.send(Task::Uses([question].into(), used)).await;
    let (ids, no_ids) = oneshot::channel();
    handle.send(Task::Ids(ids)).await;
    for _ in 0..100 {
        handle.send(Task::Input(Input::Rules)).await;
        node.turns(2);
    }
    assert!(asked.await.is_err(), "it knows nothing to answer by");
    assert_eq!(uses.await.unwrap(), [true], "it may use them later");
    assert!(no_ids.await.is_err(), "it may have others later");
    let online = || handle.figures.online_users.load(Ordering::Relaxed);
    offer(handle, connects(0, 1, None));
    node.until(|_| online() == 1);
    let asked = ask();
    node.work();
    assert!(asked.await.is_ok());
    assert_eq!(handle.figures.restarts.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_shard_that_fails_while_it_ends_has_ended() {
    let mut node = Node::new(1 << 20, 1);
    let (jobs, _written) = Saver::channel();
    let tenant = node.tenant_with(1, Arc::default(), TenantContext::default(), || {
        Some(jobs.saver())
    });
    offer(&tenant.handles[0], connects(0, 1, None));
    node.work();
    let (done, ended) = oneshot::channel();
    tenant.handles[0].send(Task::Stop(done)).await;
    node.mailbox.put_first(FIRST, Task::Panic(PanicPoint::End));
    node.work();
    node.acknowledge();
    node.work();
    ended.await.unwrap();
    assert_eq!(node.worker.counts(), (0, 0));
}

#[tokio::test]
async fn a_shard_that_has_failed_ends_where_the_broker_is_away() {
    let mut node = Node::new(1 << 20, 1);
    let (jobs, _written) = Saver::channel();
    let tenant = node.tenant_with(1, Arc::default(), TenantContext::default(), || {
        Some(jobs.saver())
    });
    offer(&tenant.handles[0], connects(0, 1, None));
    node.work();
    node.broker.set(|taken| taken.is_connected = false);
    node.mailbox.put_first(FIRST, Task::Panic(PanicPoint::Turn));
    node.work();
    let (done, ended) = oneshot::channel();
    tenant.handles[0].send(Task::Stop(done)).await;
    node.work();
    ended.await.unwrap();
    assert_eq!(node.worker.counts(), (0, 0));
}

/// A client that panics.
#[derive(Clone)]
struct Broken;

impl Transport for Broken {
    fn link(&self) -> u64 {
        panic!("it is broken")
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn try_send(&self, _: &JournalEntry) -> Option<anyhow::Result<()>> {
        None
    }

    fn send(&self, _: JournalEntry) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_panic_outside_of_all_shards_ends_the_node_and_nobody_waits_for_the_thread() {
    let (tasks, mut faults) = Tasks::new();
    let settings = OutboxSettings {
        bytes_max: 1 << 20,
        shard_bytes_max: None,
        beacon_ms: 1_000,
    };
    let handed = vec![Sources::new(1_000).add()];
    let pool = Pool::start(&Broken, handed, settings, Priority::Usual, &tasks).unwrap();
    let fault = faults.next().await.to_string();
    assert_eq!(fault, "the thread `pool-0` has failed: it is broken");
    let (mailbox, _) = &pool.0.each[0];
    let room = QueueLimits {
        batches: 1,
        input_bytes: 1,
        questions: 1,
    };
    let handle = ShardHandle::new(Arc::clone(mailbox), FIRST, room);
    let (done, never) = oneshot::channel();
    handle.send(Task::Stop(done)).await;
    assert!(never.await.is_err());
    handle.hand_over(connects(0, 1, None)).await;
    let (answer, _) = oneshot::channel();
    assert!(!handle.ask(ShardQuestion::Contacts("ann".into(), answer)));
}
