import Counter from './Counter.jsx'

const STEPS = [
  ['Edit', 'Change src/App.jsx, or any other file.'],
  ['Watch', 'The change shows here without a reload.'],
  ['Keep', 'What you counted is still there.'],
]

export default function App() {
  return (
    <main>
      <img className="mark" src={`${import.meta.env.BASE_URL}mark.svg`} alt="" />
      <h1>Hello from your preview</h1>
      <p className="lead">
        A React app on a real dev server, at an address that any replica of the gateway answers.
      </p>
      <Counter />
      <ol className="steps">
        {STEPS.map(([title, text]) => (
          <li key={title}>
            <strong>{title}</strong>
            <span>{text}</span>
          </li>
        ))}
      </ol>
    </main>
  )
}
