"""Runs the migrations on the connection that `proxy.database.engine` hands over."""

from alembic import context

from proxy.database.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
