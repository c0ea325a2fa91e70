// Serves DynamoDB's API from memory on loopback: `node dynalite.js <folder of the dynalite package>`.
// Prints its port, and ends with its standard input, so it never outlives the tests.
const dynalite = require(process.argv[2])
const server = dynalite({ createTableMs: 0, deleteTableMs: 0, updateTableMs: 0 })
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.on('end', () => process.exit(0)).resume()
