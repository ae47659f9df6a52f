//! From a request to its result: what unary calls and streams have in common.

use std::time::Instant;

use bytes::Bytes;
use keevee_core::command::{Command, OperationResult, Versioned};
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use keevee_core::kv::{
    self, DeleteResponse, ExecuteRequest, ExecuteResponse, GetRequest, GetResponse, PutResponse, request,
    response,
};
use prost::Message;

use super::failure::{self, Failure};
use crate::http::problem::{self, Problem};
use crate::http::{Api, Store};
use crate::metrics::{Operation, Protocol};
use crate::node::{Consistency, Context};

/// Of all values that one command reads.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Carries out a request, or says why that was not done. How fresh a read must be, the request itself says.
pub(super) async fn carry_out<S: Store>(
    api: &Api<S>,
    operation: request::Operation,
    context: Context,
) -> Result<response::Result, Failure> {
    match operation {
        request::Operation::Put(request) => match only_result(api, request.try_into()?, context).await? {
            OperationResult::Written { version } => Ok(response::Result::Put(PutResponse { version })),
            other => Err(Problem::unexpected(&other).into()),
        },
        request::Operation::Get(request) => Ok(response::Result::Get(get(api, request, context).await?)),
        request::Operation::Delete(request) => match only_result(api, request.try_into()?, context).await? {
            OperationResult::Deleted { existed: deleted } => {
                Ok(response::Result::Delete(DeleteResponse { deleted }))
            }
            other => Err(Problem::unexpected(&other).into()),
        },
        request::Operation::Execute(request) => {
            Ok(response::Result::Execute(execute_all(api, request, context).await?))
        }
    }
}

async fn get<S: Store>(api: &Api<S>, request: GetRequest, context: Context) -> Result<GetResponse, Failure> {
    let known = request.known_version;
    let context = Context { consistency: consistency(request.consistency)?, ..context };
    match only_result(api, request.try_into()?, context).await? {
        OperationResult::Value(Some(found)) if known == Some(found.version) => {
            let (version, expires_unix_ms) = (found.version, found.expires_unix_ms());
            Ok(GetResponse { version, value: Bytes::new(), not_modified: true, expires_unix_ms })
        }
        OperationResult::Value(Some(found)) => {
            let expires_unix_ms = found.expires_unix_ms();
            let Versioned { version, value, .. } = found;
            Ok(GetResponse { version, value, not_modified: false, expires_unix_ms })
        }
        OperationResult::Value(None) => Err(Problem::new(ErrorKind::NotFound, "the key is absent").into()),
        other => Err(Problem::unexpected(&other).into()),
    }
}

async fn execute_all<S: Store>(
    api: &Api<S>,
    request: ExecuteRequest,
    context: Context,
) -> Result<ExecuteResponse, Failure> {
    let consistency = consistency(request.consistency)?;
    let shard = request.shard.map(ShardId);
    let command = Command::try_from(request)?;
    let is_read_only = command.is_read_only();
    if consistency == Consistency::Stale && !is_read_only {
        return Err(Problem::invalid("`consistency` is for reads: every write is linearizable").into());
    }
    let expected = command.operations.len();
    let results = execute(api, command, Context { consistency, shard, ..context }).await?;
    if results.len() != expected {
        return Err(Problem::unexpected(&results).into());
    }
    let answer = ExecuteResponse { results: results.into_iter().map(kv::OperationResult::from).collect() };
    if answer.encoded_len() > ANSWER_BYTES_MAX {
        // A write was done, which `too_large` denies.
        let kind = if is_read_only { ErrorKind::TooLarge } else { ErrorKind::OutcomeUnknown };
        let detail = "the values that were read are too large for one answer: read fewer at a time";
        return Err(Problem::new(kind, detail).into());
    }
    Ok(answer)
}

async fn only_result<S: Store>(
    api: &Api<S>,
    command: Command,
    context: Context,
) -> Result<OperationResult, Failure> {
    Ok(problem::only_result(execute(api, command, context).await?)?)
}

async fn execute<S: Store>(
    api: &Api<S>,
    command: Command,
    context: Context,
) -> Result<Vec<OperationResult>, Failure> {
    command.validate(&api.settings.limits)?;
    failure::results(api.store.execute(context, command).await?)
}

fn consistency(number: i32) -> Result<Consistency, Problem> {
    match kv::Consistency::try_from(number) {
        Ok(kv::Consistency::Unspecified | kv::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(kv::Consistency::Stale) => Ok(Consistency::Stale),
        Err(_) => {
            Err(Problem::invalid(format!("`consistency` is {number}, which this version does not know")))
        }
    }
}

/// Counts a request that was answered.
pub(super) fn count<S>(
    api: &Api<S>,
    operation: Operation,
    result: &Result<response::Result, Failure>,
    started: Instant,
) {
    let error = result.as_ref().err().map(|failure| failure.kind);
    api.metrics.request(Protocol::Grpc, operation, error, started.elapsed());
}
