-- The PostgreSQL destination of the local stack: a role that may make tables in a schema of its own, and no more.
-- May be run again.
do $$
begin
  if not exists (select from pg_roles where rolname = 'bulker') then
    create role bulker login password 'bulker';
  end if;
end
$$;
create schema if not exists bulker authorization bulker;
alter role bulker set search_path = bulker;
