# Short names for `cargo dev`, for people who use just.

# List the commands
default:
    @just --list

# Build and start everything; Ctrl-C stops it (`just up --detach`, `just up --release`)
up *arguments:
    cargo dev up {{arguments}}

# Stop what `up --detach` started, and keep the data
down:
    cargo dev down

# Stop it, and delete its database and topics
reset:
    cargo dev reset

# Print the addresses of the running stack, for a shell
env:
    @cargo dev env

# Simulate a day in a shop, and check the result against the log
demo *arguments:
    cargo dev demo {{arguments}}

# Run the tests on their own PostgreSQL and Kafka (`just test -p event-store`)
test *arguments:
    cargo dev test {{arguments}}

# Disturb the whole system under load (`just chaos everything --minutes 10`)
chaos *arguments:
    cargo dev chaos {{arguments}}

# Measure Cartlog beside its rivals (`just bench log`, `just bench --quick`)
bench *arguments:
    cargo dev bench {{arguments}}

# Apply the migrations to DATABASE_URL, or to the running stack's database
migrate:
    cargo dev migrate

# Write .sqlx after a change of SQL
queries *arguments:
    cargo dev queries {{arguments}}

# Write the generated tables in docs/ (`just docs --check`)
docs *arguments:
    cargo dev docs {{arguments}}

# Run what CI runs
ci:
    .ci/run
