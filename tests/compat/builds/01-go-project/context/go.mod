module example.test/server

go 1.22

require example.test/lib v1.2.3
