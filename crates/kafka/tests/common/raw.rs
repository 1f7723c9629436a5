//! Kafka's protocol by hand, for messages that no client library sends.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use test_support::kafka_bootstrap_servers;

/// Sends a message with one header, whose name may be any bytes. The broker must be the only one.
pub fn send_with_header(topic: &str, partition: i32, value: &[u8], name: &[u8], content: &[u8]) {
    let request = produce(topic, partition, &batch(value, name, content));
    let mut broker = TcpStream::connect(kafka_bootstrap_servers()).expect("the broker");
    broker.write_all(&request).expect("a request");
    let mut length = [0; 4];
    broker.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    broker.read_exact(&mut answer).expect("an answer");
    // Correlation id, one topic with its name, one partition with its number, and the error.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[at..at + 2], [0, 0], "the broker takes it: {answer:?}");
}

/// A Produce request of version 3.
fn produce(topic: &str, partition: i32, batch: &[u8]) -> Vec<u8> {
    let mut body = vec![];
    // The header: key, version, correlation id, client id.
    body.extend(0_i16.to_be_bytes());
    body.extend(3_i16.to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    string(&mut body, "raw");
    // No transaction, all replicas, 10 s.
    body.extend((-1_i16).to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend(10_000_i32.to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic);
    body.extend(1_i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend(length(batch).to_be_bytes());
    body.extend(batch);
    let mut request = length(&body).to_be_bytes().to_vec();
    request.extend(body);
    request
}

/// A batch of version 2 with one record.
fn batch(value: &[u8], name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut record = vec![0];
    // Differences of timestamp and offset, no key, the value, one header.
    varint(&mut record, 0);
    varint(&mut record, 0);
    varint(&mut record, -1);
    varint(&mut record, length(value));
    record.extend(value);
    varint(&mut record, 1);
    varint(&mut record, length(name));
    record.extend(name);
    varint(&mut record, length(content));
    record.extend(content);

    let mut checked = vec![];
    // Attributes, the last record's offset, both timestamps, no idempotent producer, one record.
    checked.extend(0_i16.to_be_bytes());
    checked.extend(0_i32.to_be_bytes());
    checked.extend(1_700_000_000_000_i64.to_be_bytes());
    checked.extend(1_700_000_000_000_i64.to_be_bytes());
    checked.extend((-1_i64).to_be_bytes());
    checked.extend((-1_i16).to_be_bytes());
    checked.extend((-1_i32).to_be_bytes());
    checked.extend(1_i32.to_be_bytes());
    varint(&mut checked, length(&record));
    checked.extend(record);

    let mut batch = vec![];
    batch.extend(0_i64.to_be_bytes());
    batch.extend((4 + 1 + 4 + length(&checked)).to_be_bytes());
    batch.extend(0_i32.to_be_bytes());
    batch.push(2);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    batch
}

fn length(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).expect("a small message")
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend(i16::try_from(text.len()).expect("a short name").to_be_bytes());
    to.extend(text.as_bytes());
}

/// Zigzag, in groups of 7 bits.
fn varint(to: &mut Vec<u8>, number: i32) {
    let mut rest = ((number << 1) ^ (number >> 31)) as u32;
    while rest >= 0x80 {
        to.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
