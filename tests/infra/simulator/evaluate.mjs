// Evaluate the calls on standard input, a JSON object {policies, calls}, and print for each call whether it is allowed.
import { runSimulation } from '@cloud-copilot/iam-simulate'

const ACCOUNT = '123456789012'
let text = ''
for await (const part of process.stdin) text += part
const { policies, calls } = JSON.parse(text)

const results = []
for (const call of calls) {
  // A call on several resources is allowed if each of them is.
  const outcomes = []
  for (const resource of call.resources) {
    const response = await runSimulation(
      {
        request: {
          action: call.action,
          principal: `arn:aws:iam::${ACCOUNT}:role/tested`,
          resource: { resource, accountId: ACCOUNT },
          contextVariables: call.context,
        },
        identityPolicies: policies[call.principal].map((policy, number) => ({ name: `policy${number}`, policy })),
        serviceControlPolicies: [],
        resourceControlPolicies: [],
        permissionBoundaryPolicies: undefined,
      },
      {},
    )
    outcomes.push(response.resultType === 'error' ? `error: ${JSON.stringify(response.errors ?? response)}` : response.overallResult)
  }
  results.push(outcomes)
}
process.stdout.write(JSON.stringify(results))
