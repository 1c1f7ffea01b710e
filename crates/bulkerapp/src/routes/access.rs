//! Who may ask, and who sees what: extractors that check the token of a request.
//!
//! Invariant: bodies of events, and the database's own words, which quote them, go by one rule
//! wherever they are shown ([`BodyReader`]); names of hosts, topics and tables that explain a fault
//! are for administrators.

use std::{convert::Infallible, sync::Arc};

use appbase::{
    auth::{Access, AuthError, TokenAuth},
    http::error_reply,
};
use axum::{
    extract::{FromRef, FromRequestParts},
    http::{StatusCode, header::AUTHORIZATION, request::Parts},
    response::Response,
};

use crate::state::BodiesFor;

/// A sender with a known token. 401 for all others.
pub(super) struct Authorized;

/// A sender with an administrator's token where there are such tokens, else with any known one.
/// 403 for a token that is known and not enough, 401 for all others.
pub(super) struct AdminToken;

/// A sender who may see the bodies of events. 403 for a token that is known and not enough, 401 for
/// all others.
pub(super) struct BodyReader;

/// Whether the sender has an administrator's token, or one that is as good where there is none.
/// Refuses nobody: it is for what is open to all and says more to some.
pub(super) struct IsAdmin(pub(super) bool);

impl<S> FromRequestParts<S> for Authorized
where
    S: Send + Sync,
    Arc<TokenAuth>: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Authorized, Response> {
        require(parts, &Arc::from_ref(state), Access::User).map(|()| Authorized).map_err(refusal)
    }
}

impl<S> FromRequestParts<S> for AdminToken
where
    S: Send + Sync,
    Arc<TokenAuth>: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<AdminToken, Response> {
        require(parts, &Arc::from_ref(state), Access::Admin).map(|()| AdminToken).map_err(refusal)
    }
}

impl<S> FromRequestParts<S> for BodyReader
where
    S: Send + Sync,
    Arc<TokenAuth>: FromRef<S>,
    BodiesFor: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<BodyReader, Response> {
        let BodiesFor(least) = BodiesFor::from_ref(state);
        require(parts, &Arc::from_ref(state), least).map(|()| BodyReader).map_err(refusal)
    }
}

impl<S> FromRequestParts<S> for IsAdmin
where
    S: Send + Sync,
    Arc<TokenAuth>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<IsAdmin, Infallible> {
        Ok(IsAdmin(check(parts, &Arc::from_ref(state)) == Ok(Access::Admin)))
    }
}

fn check(parts: &Parts, auth: &TokenAuth) -> Result<Access, AuthError> {
    auth.check(parts.headers.get(AUTHORIZATION).map(|value| value.as_bytes()))
}

/// Lets those pass who have this access or more.
fn require(parts: &Parts, auth: &TokenAuth, least: Access) -> Result<(), AuthError> {
    if check(parts, auth)? >= least { Ok(()) } else { Err(AuthError::NotAdmin) }
}

fn refusal(error: AuthError) -> Response {
    let status = match error {
        AuthError::NotAdmin => StatusCode::FORBIDDEN,
        AuthError::Missing | AuthError::Invalid => StatusCode::UNAUTHORIZED,
    };
    error_reply(status, &error.to_string())
}
