//! The encoding of each record, which later versions must be able to read.

use super::*;

/// The encoding of a format never changes: another encoding is another format.
#[test]
fn records_have_the_bytes_of_their_format() {
    let names = Names::new();
    let metadata = metadata_of(vec![("device", "\"web\"", true), ("ip", "1", false)]);
    let (user, name) = names.intern_name("ann");
    let event = Arc::new(Event {
        user,
        name: name.clone(),
        timestamp: 300,
        change: Change::Online,
        metadata: metadata.clone(),
    });
    let gone = Arc::new(Event {
        change: Change::Offline {
            last_seen: 9,
            reason: Reason::Logout,
        },
        metadata: Metadata::default(),
        ..Event::clone(&event)
    });
    let part = |name: &str| [names.intern(name)].into_iter().collect();
    let told = Recipients::new([
        (part("ben"), ShownDigest::from_bytes([7; 8])),
        (part("cleo"), ShownDigest::from_bytes([8; 8])),
    ]);
    let connection = |state| tracker::TrackerRecord::Connection {
        user: "ann".into(),
        conn: "c1".into(),
        state: Some(state),
    };
    let records = [
        Record::Tracker(connection(Connected::Live {
            opened: 1,
            newest: 2,
            metadata: metadata.clone(),
            activity: None,
            order: 5,
            silence: None,
            stream_seq: 0,
        })),
        Record::Tracker(connection(Connected::Closed {
            timestamp: 1,
            newest: 2,
            kept_since: 3,
            stream_seq: 0,
        })),
        Record::Tracker(tracker::TrackerRecord::NewestTimestamp {
            user: "ann".into(),
            conn: "c1".into(),
            newest: Some(5),
        }),
        Record::Tracker(tracker::TrackerRecord::User {
            user: "ann".into(),
            state: Some(UserState {
                last_seen: 6,
                pending: Some((7, Reason::Logout)),
            }),
        }),
        Record::Ledger {
            user: name.clone(),
            entry: Some(LedgerEntry {
                connect_delay_ms: 300,
                ..LedgerEntry::new(Arc::clone(&event), told.clone())
            }),
        },
        Record::Ledger {
            user: name.clone(),
            entry: Some(LedgerEntry {
                is_stated: true,
                ..LedgerEntry::new(Arc::clone(&event), Recipients::default())
            }),
        },
        Record::Waiting {
            user: name.clone(),
            steps: vec![
                Step::Notify(gone, told.clone()),
                Step::Announce(event, true),
            ],
        },
        Record::Departed {
            user: name.clone(),
            departure: Some(Departure {
                user,
                reason: Reason::Timeout,
                timestamp: 10,
                last_seen: 9,
                metadata: metadata_of(vec![("lastHeartbeat", "9", true)]),
                known: KnownMetadata::some(&metadata, &["device".into()].into()),
                recipients: told,
            }),
        },
        Record::Tracker(connection(Connected::Live {
            opened: 1,
            newest: 2,
            metadata: metadata.clone(),
            activity: Some(Activity::Typing),
            order: -1,
            silence: Some(SilentStarts {
                since: 4,
                starts: 3,
            }),
            stream_seq: 0,
        })),
        Record::Status {
            user: name,
            own_status: Some(OwnStatus {
                timestamp: 8,
                status: Some(Status {
                    text: "\"away\"".into(),
                    expires_at: Some(9),
                }),
            }),
        },
        Record::Tracker(connection(Connected::Closed {
            timestamp: 1,
            newest: 2,
            kept_since: 3,
            stream_seq: 9,
        })),
        Record::Tracker(connection(Connected::Live {
            opened: 1,
            newest: 2,
            metadata: metadata.clone(),
            activity: None,
            order: 5,
            silence: None,
            stream_seq: 9,
        })),
    ];
    let web = b"\x02\x06device\x05\"web\"\x01\x02ip\x011\x00";
    let told_bytes: &[u8] =
        b"\x02\x07\x07\x07\x07\x07\x07\x07\x07\x01\x03ben\x08\x08\x08\x08\x08\x08\x08\x08\x01\x04cleo";
    let bytes: [(&[u8], Vec<u8>); 12] = [
        (
            b"\x00\x03ann\x02c1",
            [b"\x00\x01\x02", &web[..], b"\x0a\x00\x00"].concat(),
        ),
        (b"\x00\x03ann\x02c1", b"\x01\x01\x02\x03".into()),
        (b"\x01\x03ann\x02c1", b"\x05".into()),
        (b"\x02\x03ann", b"\x06\x01\x07\x02".into()),
        (
            b"\x03\x03ann",
            [b"\xac\x02", &web[..], told_bytes, b"\xac\x02"].concat(),
        ),
        (
            b"\x03\x03ann",
            [b"\xac\x02", &web[..], b"\x00\x00\x01"].concat(),
        ),
        (
            b"\x05\x03ann",
            [
                b"\x02\xac\x02\x01\x09\x02\x00\x01",
                told_bytes,
                &b"\xac\x02\x00"[..],
                &web[..],
                b"\x00\x01",
            ]
            .concat(),
        ),
        (
            b"\x07\x03ann",
            [
                &b"\x0a\x09\x01\x01\x0dlastHeartbeat\x019\x01"[..],
                b"\x01\x06device\x05\"web\"\x01\x01\x01\x06device",
                told_bytes,
            ]
            .concat(),
        ),
        (
            b"\x00\x03ann\x02c1",
            [b"\x00\x01\x02", &web[..], b"\x01\x01\x02\x01\x04\x03"].concat(),
        ),
        (b"\x04\x03ann", b"\x08\x01\x06\"away\"\x01\x09".into()),
        (b"\x00\x03ann\x02c1", b"\x02\x01\x02\x03\x09".into()),
        (
            b"\x00\x03ann\x02c1",
            [b"\x03\x01\x02", &web[..], b"\x0a\x00\x00\x09"].concat(),
        ),
    ];
    for (record, (key, value)) in records.iter().zip(bytes) {
        assert_eq!(record.encode(&names), (key.to_vec(), Some(value.clone())));
        // The same ids have other numbers elsewhere.
        let elsewhere = Names::new();
        elsewhere.intern("somebody");
        let read = Record::decode(key, &value, &elsewhere).unwrap();
        assert_eq!(read.user(), "ann");
        assert_eq!(read.encode(&elsewhere), (key.to_vec(), Some(value)));
    }
}

#[test]
fn what_is_no_record_is_refused() {
    let names = Names::new();
    for (key, value) in [
        (&b"\x09\x03ann"[..], &b"\x05"[..]),
        (b"\x01\x03ann", b"\x05"),
        (b"\x00\x03ann\x02c1", b"\x07"),
        (b"\x03\x03ann", b""),
    ] {
        assert!(Record::decode(key, value, &names).is_err(), "{key:?}");
    }
}
