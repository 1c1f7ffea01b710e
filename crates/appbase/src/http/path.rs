//! Paths that are almost right.

use axum::{
    http::{HeaderValue, Method, StatusCode, Uri, header::LOCATION, uri::PathAndQuery},
    response::{IntoResponse, Response},
};

/// A redirect to the route that differs by its trailing slash only, if there is one: 301 for GET,
/// else 307, with the query. `routes` are methods and paths; a segment in braces matches anything.
pub fn redirect_to_route<'a>(
    method: &Method,
    uri: &Uri,
    routes: impl IntoIterator<Item = (&'a Method, &'a str)>,
) -> Option<Response> {
    let path = uri.path();
    let other = match path.strip_suffix('/') {
        Some(without) if !without.is_empty() => without.to_owned(),
        _ => format!("{path}/"),
    };
    if !routes.into_iter().any(|(of, route)| of == method && matches(route, &other)) {
        return None;
    }
    let location = match uri.query() {
        Some(query) => format!("{other}?{query}"),
        None => other,
    };
    let status = if method == Method::GET {
        StatusCode::MOVED_PERMANENTLY
    } else {
        StatusCode::TEMPORARY_REDIRECT
    };
    let location = HeaderValue::try_from(location).ok()?;
    Some((status, [(LOCATION, location)]).into_response())
}

fn matches(route: &str, path: &str) -> bool {
    let (mut route, mut path) = (route.split('/'), path.split('/'));
    loop {
        match (route.next(), path.next()) {
            (None, None) => return true,
            (Some(expected), Some(segment)) => {
                let is_parameter = expected.starts_with('{') && !segment.is_empty();
                if !is_parameter && expected != segment {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// The same address with repeated slashes in its path made one; `None` if there are none.
pub(super) fn without_repeated_slashes(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.as_bytes().windows(2).any(|pair| pair == b"//") {
        return None;
    }
    let mut collapsed = String::with_capacity(path.len());
    for character in path.chars() {
        if !(character == '/' && collapsed.ends_with('/')) {
            collapsed.push(character);
        }
    }
    if let Some(query) = uri.query() {
        collapsed.push('?');
        collapsed.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(collapsed).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &[(Method, &str)] =
        &[(Method::POST, "/post/{destination}"), (Method::GET, "/ready")];

    fn redirect(method: Method, path: &str) -> Option<(u16, String)> {
        let response = redirect_to_route(
            &method,
            &path.parse().unwrap(),
            ROUTES.iter().map(|(method, route)| (method, *route)),
        )?;
        let location = response.headers()[LOCATION].to_str().unwrap().to_owned();
        Some((response.status().as_u16(), location))
    }

    #[test]
    fn a_trailing_slash_redirects_to_the_route_without() {
        assert_eq!(redirect(Method::GET, "/ready/"), Some((301, "/ready".to_owned())));
        assert_eq!(
            redirect(Method::POST, "/post/pg/?tableName=a%20b"),
            Some((307, "/post/pg?tableName=a%20b".to_owned()))
        );
    }

    #[test]
    fn other_paths_and_methods_do_not_redirect() {
        for (method, path) in [
            (Method::POST, "/ready/"),
            (Method::GET, "/post/pg/"),
            (Method::POST, "/post/"),
            (Method::POST, "/post/pg/x/"),
            (Method::GET, "/"),
            (Method::GET, "/unknown/"),
        ] {
            assert_eq!(redirect(method, path), None, "{path}");
        }
    }

    #[test]
    fn repeated_slashes_are_one() {
        let collapsed = |uri: &str| without_repeated_slashes(&uri.parse().unwrap());
        assert_eq!(collapsed("//post///pg?a=b//c").unwrap(), "/post/pg?a=b//c");
        assert_eq!(collapsed("/post/pg?a=b//c"), None);
    }
}
