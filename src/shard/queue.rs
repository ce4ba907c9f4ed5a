//! stub
use crate::job::{JobId, Refusal};
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget { pub(super) running_max: Option<usize>, pub(super) memory_bytes: Option<u64>, pub(super) cpu_percent: Option<u64>, pub(super) queue_max: usize }
impl Budget { pub(super) fn is_open(&self) -> bool { true } }
#[derive(Debug, Clone)]
pub(super) struct Demand { pub(super) id: JobId, pub(super) owner: String, pub(super) priority: i32, pub(super) arrived_ns: i64, pub(super) memory_bytes: u64, pub(super) cpu_percent: u64 }
pub(super) enum Answer { Granted, Waits(String) }
#[derive(Debug)]
pub(super) struct Queue;
impl Queue { pub(super) fn new(_: Budget) -> Self { Self } pub(super) fn ask(&mut self, _: Demand) -> Result<Answer, Refusal> { Ok(Answer::Granted) }
 pub(super) fn give_back(&mut self, _: JobId, _: &mut Vec<JobId>) {} pub(super) fn restore_running(&mut self, _: Demand) {} pub(super) fn why(&self, _: JobId) -> Option<String> { None } }
