module dagger/consumer

go 1.25.0

require dagger.io/dagger v0.20.8
